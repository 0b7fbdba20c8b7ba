"""The predictor: the same numbers whatever the company, and messages for rows that do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hourglass.artifact import Artifact, Manifest
from hourglass.errors import DataError
from hourglass.inference.predictor import TILE, Predictor

Array = Any
MODELS: dict[str, dict[str, Any]] = {
    "tanh": {"network": {"widths": [7, 5], "activation": "tanh"}},
    "relu": {"network": {"widths": [33, 20], "activation": "relu"}},
    "hashing": {
        "network": {"widths": [10], "activation": "tanh"},
        "corruption": {"kind": "gaussian", "sd": 0.5},
        "code": {"kind": "gaussian_noise", "sd": 4.0},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def predictor(
    request: Any, save_artifact: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Predictor:
    folder = tmp_path_factory.mktemp(request.param)
    save_artifact(folder, model=MODELS[request.param], drop_constant=request.param == "relu")
    return Predictor.load(str(folder))


@pytest.fixture
def loaded(tmp_path: Path, save_artifact: Callable[..., str]) -> Callable[..., Predictor]:
    def load(**changes: Any) -> Predictor:
        save_artifact(tmp_path / "artifact", **changes)
        return Predictor.load(str(tmp_path / "artifact"))

    return load


ENSEMBLES = [("tanh", "mean"), ("hashing", "max"), ("relu", "mean")]


@pytest.fixture(scope="module", params=ENSEMBLES, ids="-".join)
def ensemble(
    request: Any, save_artifact: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Predictor:
    """Five untrained members, the second leads."""
    kind, combine = request.param
    folder = tmp_path_factory.mktemp("ensemble")
    made = {"members": 5, "primary": 2, "combine": combine}
    save_artifact(folder, model=MODELS[kind], drop_constant=kind == "relu", ensemble=made)
    return Predictor.load(str(folder))


def everything(predictor: Predictor, rows: Array) -> list[Array]:
    scores = predictor.score(rows, reconstruction=True, feature_errors=True)
    return [
        predictor.encode(rows),
        predictor.hash(rows),
        predictor.anomaly(rows),
        predictor.reconstruct(rows),
        *vars(scores).values(),
    ]


@pytest.mark.parametrize("batch", [1, 7, TILE - 1, TILE, TILE + 1, 256])
def test_a_row_gives_the_same_bits_in_any_company(
    predictor: Predictor, rows: Array, batch: int
) -> None:
    whole = everything(predictor, rows)
    parts = [everything(predictor, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    for expected, *found in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(found), expected, strict=True)


def test_a_row_gives_the_same_bits_in_any_place(predictor: Predictor, rows: Array) -> None:
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = everything(predictor, rows[order])
    for expected, found in zip(everything(predictor, rows), shuffled, strict=True):
        np.testing.assert_array_equal(found, expected[order], strict=True)


def test_a_forward_of_ones_own_sees_whole_tiles_of_checked_rows(
    predictor: Predictor, rows: Array
) -> None:
    seen: list[int] = []

    def forward(tile: Any) -> Any:
        seen.append(len(tile))
        yield tile + 1.0

    (made,) = predictor.map_tiles(rows, forward)
    assert set(seen) == {TILE}
    np.testing.assert_array_equal(made, rows + np.float32(1.0))
    with pytest.raises(DataError, match="the model needs \\(rows, 12\\)"):
        predictor.map_tiles(rows[:, :3], forward)


def test_no_rows_give_empty_answers_of_the_right_shape(predictor: Predictor, rows: Array) -> None:
    for some, none in zip(
        everything(predictor, rows), everything(predictor, rows[:0]), strict=True
    ):
        assert none.shape == (0, *some.shape[1:])
        assert none.dtype == some.dtype


@pytest.mark.parametrize("trained_on", ["uint8", "float32", "float64"])
def test_the_callers_type_changes_no_bit(loaded: Callable[..., Predictor], trained_on: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 128, (70, 9))
    predictor = loaded(of=pixels.astype(trained_on))
    expected = predictor.score(pixels.astype(trained_on))
    others = ["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i4", "g"]
    for other in others:
        found = predictor.score(pixels.astype(other))
        np.testing.assert_array_equal(found.code, expected.code, err_msg=other)
        np.testing.assert_array_equal(found.score, expected.score, err_msg=other)
    bits = pixels > 60
    np.testing.assert_array_equal(predictor.encode(bits), predictor.encode(bits.astype("u1")))


def test_strided_and_read_only_rows(predictor: Predictor, rows: Array) -> None:
    expected = predictor.encode(rows)[::2]
    sliced = np.asfortranarray(rows)[::2]
    sliced.flags.writeable = False
    np.testing.assert_array_equal(predictor.encode(sliced), expected)
    np.testing.assert_array_equal(predictor.encode(rows.tolist())[::2], expected)


def test_score_is_the_mean_squared_error_in_model_space(predictor: Predictor, rows: Array) -> None:
    scores = predictor.score(rows, reconstruction=True, feature_errors=True)
    preprocessing = predictor.module.preprocessing
    spread = np.ptp(rows.astype(np.float64), axis=0)
    spread[spread == 0] = 1.0
    in_range = ((scores.reconstruction - rows.astype(np.float64)) / spread) ** 2
    kept = preprocessing.kept_F.numpy()
    np.testing.assert_allclose(scores.score, in_range[:, kept].mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores.range_mse, in_range.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores.feature_errors.sum(axis=1), scores.score, rtol=1e-5)
    assert len(predictor.feature_names) == scores.feature_errors.shape[1] == len(kept)
    np.testing.assert_array_equal(predictor.anomaly(rows), scores.score)
    np.testing.assert_array_equal(predictor.encode(rows), scores.code)
    np.testing.assert_array_equal(predictor.reconstruct(rows), scores.reconstruction)


def alone(predictor: Predictor, index: int) -> Predictor:
    """One member as a model of its own."""
    manifest = predictor.artifact.manifest.model_dump() | {"ensemble": None}
    single = Manifest.model_validate(manifest)
    return Predictor(Artifact(single, predictor.members[index], ""))


def test_an_ensembles_score_is_that_of_its_members(ensemble: Predictor, rows: Array) -> None:
    """To the bit: NumPy's mean or maximum of what each member says by itself."""
    rule = np.mean if ensemble.combine == "mean" else np.max
    own = [alone(ensemble, index).score(rows, feature_errors=True) for index in range(5)]
    together = rule([one.score for one in own], axis=0)
    found = ensemble.score(rows, feature_errors=True)
    np.testing.assert_array_equal(found.score, together, strict=True)
    np.testing.assert_array_equal(ensemble.anomaly(rows), together, strict=True)
    np.testing.assert_array_equal(found.is_anomaly, together > ensemble.threshold)
    np.testing.assert_allclose(found.feature_errors.sum(axis=1), together, rtol=1e-5)
    errors = np.stack([one.feature_errors for one in own])
    if ensemble.combine == "mean":
        expected = errors.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found.feature_errors, expected, rtol=1e-5)
    else:
        highest = np.argmax([one.score for one in own], axis=0)
        assert len(set(highest)) > 1
        np.testing.assert_array_equal(found.feature_errors, errors[highest, np.arange(len(rows))])
    assert np.ptp([one.score for one in own], axis=0).min() > 0


def test_all_but_the_score_is_the_leads(ensemble: Predictor, rows: Array) -> None:
    lead = alone(ensemble, 0)
    mine, its = (p.score(rows, reconstruction=True) for p in (ensemble, lead))
    for name in ("code", "hash", "range_mse", "reconstruction"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))
    np.testing.assert_array_equal(ensemble.encode(rows), lead.encode(rows))
    np.testing.assert_array_equal(ensemble.reconstruct(rows), lead.reconstruct(rows))


@pytest.mark.parametrize("batch", [1, 7, TILE + 1])
def test_an_ensemble_gives_the_same_bits_in_any_company(
    ensemble: Predictor, rows: Array, batch: int
) -> None:
    test_a_row_gives_the_same_bits_in_any_company(ensemble, rows, batch)
    test_a_row_gives_the_same_bits_in_any_place(ensemble, rows)


def test_decode_of_encode_is_reconstruct(predictor: Predictor, rows: Array) -> None:
    np.testing.assert_array_equal(
        predictor.decode(predictor.encode(rows)), predictor.reconstruct(rows)
    )


def test_threshold(predictor: Predictor, rows: Array) -> None:
    score = predictor.anomaly(rows)
    middle = float(np.median(score))
    np.testing.assert_array_equal(predictor.score(rows).is_anomaly, score > 0.5)
    flagged = predictor.score(rows, threshold=middle).is_anomaly
    np.testing.assert_array_equal(flagged, score > middle)
    assert 0 < flagged.sum() < len(rows)


def test_hash_packs_the_first_unit_into_the_highest_bit(predictor: Predictor) -> None:
    width = predictor.code_width
    code = -np.ones((3, width), np.float32)
    code[1, 0] = code[2, -1] = 1.0
    last = 1 << (7 - (width - 1) % 8)
    assert predictor.pack(code)[:, 0].tolist()[:2] == [0, 128]
    assert predictor.pack(code)[2, -1] == last
    assert predictor.pack(code).shape == (3, -(-width // 8))
    assert predictor.pack(np.zeros((1, width))).max() == 0  # at the threshold: 0


def test_a_row_too_far_for_float32_is_an_anomaly(loaded: Callable[..., Predictor]) -> None:
    """Its errors overflow to NaN, which is above no threshold: the control is the error itself."""
    rows = np.random.default_rng(0).normal(size=(300, 12)) * 1e-9
    predictor = loaded(
        of=rows,
        model={"network": {"widths": [7, 5], "activation": "relu"}},
        features={"vector": None, "columns": tuple("abcdefghijkl")},
    )
    rows[7, 2] = 3e38
    with torch.inference_mode():
        module = predictor.module(torch.from_numpy(rows[:64]))
    assert torch.isnan(module.output_BF[7]).any()
    found = predictor.score(rows, threshold=1e9)
    assert (found.score[7], predictor.anomaly(rows)[7]) == (np.inf, np.inf)
    assert np.flatnonzero(found.is_anomaly).tolist() == [7]


def test_feature_names_and_columns(loaded: Callable[..., Predictor], rows: Array) -> None:
    names = tuple(f"x{i}" for i in range(12))
    predictor = loaded(drop_constant=True, features={"vector": None, "columns": names})
    assert predictor.feature_names == [name for name in names if name != "x5"]
    columns = {name: rows[:, i] for i, name in enumerate(names)} | {"id": np.arange(300)}
    np.testing.assert_array_equal(predictor.from_columns(columns), rows)
    with pytest.raises(DataError) as caught:
        predictor.from_columns({name: columns[name] for name in names if name != "x3"})
    assert str(caught.value) == f"column 'x3' is missing; the model needs {', '.join(names)}"
    with pytest.raises(DataError) as caught:
        predictor.from_columns(columns | {"x3": rows[:5, 3]})
    assert str(caught.value) == f"rows of unequal lengths in {', '.join(names)}"


def test_vector_column(predictor: Predictor, rows: Array) -> None:
    np.testing.assert_array_equal(predictor.from_columns({"image": rows.tolist()}), rows)
    with pytest.raises(DataError, match="rows of unequal lengths in image"):
        predictor.from_columns({"image": [[1.0], [1.0, 2.0]]})
    kept = predictor.module.preprocessing.kept_F.tolist()
    assert predictor.feature_names == [f"image[{i}]" for i in kept]


REFUSED = [
    (np.zeros((2, 11)), "rows of shape (2, 11), the model needs (rows, 12)"),
    (np.zeros(12), "rows of shape (12,), the model needs (rows, 12)"),
    (np.zeros((1, 1, 12)), "rows of shape (1, 1, 12), the model needs (rows, 12)"),
    ([[1.0], [1.0, 2.0]], "rows of unequal lengths, the model needs (rows, 12)"),
    (np.zeros((2, 12), "O"), "rows of type object, the model needs numbers"),
    (np.zeros((2, 12), "S1"), "rows of type |S1, the model needs numbers"),
    (np.zeros((2, 12), "c8"), "rows of type complex64, the model needs numbers"),
    (np.zeros((2, 12), "M8[s]"), "rows of type datetime64[s], the model needs numbers"),
]


@pytest.mark.parametrize("output", ["encode", "hash", "anomaly", "reconstruct", "score"])
@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[s for _, s in REFUSED])
def test_rows_that_do_not_fit(
    predictor: Predictor, output: str, wrong: Array, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        getattr(predictor, output)(wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(2, 3), (5,)])
def test_codes_that_do_not_fit(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        predictor.decode(np.zeros(shape))
    assert str(caught.value) == (
        f"codes of shape {shape}, the model needs (rows, {predictor.code_width})"
    )


@pytest.mark.parametrize("policy", ["error", "drop_row", "mean"])
@pytest.mark.parametrize("cell", [np.nan, np.inf, -np.inf, 1e300], ids=str)
def test_missing_cells_follow_the_policy_of_training(
    loaded: Callable[..., Predictor], rows: Array, policy: str, cell: float
) -> None:
    """1e300 is a number that float32, the type of training, cannot hold."""
    predictor = loaded(features={"missing": policy})
    wrong = rows.astype(np.float64)
    wrong[3, 2] = cell
    if policy != "mean":
        with pytest.raises(DataError) as caught:
            predictor.encode(wrong)
        assert str(caught.value) == (
            f"row 3, 'image[2]': found {cell}; the model was trained with "
            f"`missing: {policy}`, so every cell must be a finite number"
        )
        return
    filled = rows.copy()
    filled[3, 2] = float(predictor.module.preprocessing.mean_C[2])
    np.testing.assert_array_equal(predictor.encode(wrong), predictor.encode(filled))
    assert np.isfinite(predictor.anomaly(wrong)).all()
