"""The notebook face: scikit-learn's contract, every kind of rows, and the bits of the artifact."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hourglass import Autoencoder, Predictor, load
from hourglass.errors import DataError, SpecError
from hourglass.estimator import InputError
from hourglass.inference import generate

NAMES = [f"c{i}" for i in range(6)]
MODELS = {
    "hashing": {"code": {"kind": "gaussian_noise", "sd": 2.0}, "loss": "bce", "scaling": "unit"},
    "denoising": {"corruption": {"kind": "zeros", "p": 0.2}, "schedule": "cosine"},
    "sparse": {"penalties": [{"kind": "sparsity_kl", "rho": 0.1, "beta": 0.5}]},
    "adversarial": {"preset": "adversarial", "adversary": {"lr": np.float64(0.01)}},
    "odd": {"decoder": (5,), "lr": 0.01, "optimizer": "sgd", "early_stop": {"patience": 1}},
}


@pytest.fixture(scope="module", name="X")
def _rows() -> np.ndarray:
    return np.random.default_rng(0).normal(5.0, 2.0, (200, 6))


def make(**parameters: Any) -> Autoencoder:
    return Autoencoder(**{"widths": (4, 3), "epochs": 2, "random_state": 7, **parameters})


@parametrize_with_checks([Autoencoder(widths=(3,), epochs=2)])
def test_sklearn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_readme_lines(X: np.ndarray, tmp_path: Path) -> None:
    ae = Autoencoder(widths=[100]).fit(X)
    assert ae.encode(X).shape == (200, 100)
    assert ae.hash(X).shape == (200, 13)
    assert ae.anomaly(X).shape == (200,)
    assert ae.reconstruct(X).shape == X.shape
    assert ae.decode(ae.encode(X)).tolist() == ae.reconstruct(X).tolist()
    assert len(ae.save(tmp_path / "model")) == 64


def test_loss_falls_and_is_recorded(X: np.ndarray) -> None:
    low = X[:, :2] @ np.random.default_rng(1).normal(size=(2, 6))
    ae = make(widths=(2,), epochs=40, lr=0.02, activation="linear", batch_size=32).fit(low)
    assert len(ae.history_) == 40
    assert [record["epoch"] for record in ae.history_[:2]] == [1.0, 2.0]
    assert ae.history_[-1]["holdout_fvu"] < 0.01 < ae.history_[0]["holdout_fvu"]
    assert ae.score(low) == -ae.anomaly(low).mean()
    odd = low[:1] + np.array([9, -9, 9, -9, 9, -9])
    assert ae.anomaly(low).max() < ae.anomaly(odd)[0]
    assert 0 < (ae.anomaly(low) > ae.threshold_).mean() < 0.1


def rows_as(X: np.ndarray) -> dict[str, Any]:
    lists = X.tolist()
    return {
        "lists": lists,
        "fortran": np.asfortranarray(X),
        "objects": X.astype(object),
        "pandas": pd.DataFrame(X, columns=NAMES),
        "pandas index": pd.DataFrame(X, columns=NAMES, index=range(500, 500 + len(X))),
        "polars": pl.DataFrame(X, schema=NAMES),
        "arrow": pa.table(list(X.T), names=NAMES),
        "arrow batch": pa.record_batch(list(X.T), names=NAMES),
        "pandas vectors": pd.DataFrame({"v": list(X)}),
        "pandas lists": pd.DataFrame({"v": lists}),
        "polars vectors": pl.DataFrame({"v": X}),
        "polars lists": pl.DataFrame({"v": lists}),
        "polars series": pl.Series("v", lists),
        "arrow vectors": pa.table({"v": lists}),
        "arrow chunks": pa.chunked_array([lists[:50], lists[50:]]),
        "arrow fixed": pa.array(lists, pa.list_(pa.float64(), 6)),
    }


@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names")
@pytest.mark.parametrize("kind", rows_as(np.zeros((1, 6))))
def test_any_kind_of_rows_gives_the_same_bits(X: np.ndarray, kind: str) -> None:
    expected = make().fit(X)
    given = rows_as(X)[kind]
    found = make().fit(given)
    assert found.n_features_in_ == 6
    assert found.encode(given).tolist() == expected.encode(X).tolist()
    assert found.encode(X).tolist() == expected.encode(given).tolist()
    named = kind in ("pandas", "pandas index", "polars", "arrow", "arrow batch")
    assert list(getattr(found, "feature_names_in_", [])) == (NAMES if named else [])
    features = found.predictor_.artifact.manifest.features
    assert features.columns == (tuple(NAMES) if named else ())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("uint8", "uint8"),
        ("bool", "uint8"),
        ("int16", "float32"),
        ("float32", "float32"),
        ("int64", "float64"),
        ("float64", "float64"),
    ],
)
def test_types_are_those_of_a_run(given: str, kept: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (50, 6)).astype(given)
    ae = make(widths=[2]).fit(pixels)
    assert ae.predictor_.features.dtype == kept
    assert ae.predictor_.features.vector == "x"
    table = pa.table({"image": pa.array(pixels.tolist(), pa.list_(pa.from_numpy_dtype(given)))})
    again = make(widths=[2]).fit(table)
    assert (again.predictor_.features.dtype, again.predictor_.features.vector) == (kept, "image")
    assert again.encode(table).tolist() == ae.encode(pixels).tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_saved_and_loaded_bits_are_the_same(X: np.ndarray, tmp_path: Path, kind: str) -> None:
    ae = make(**MODELS[kind]).fit(X)
    ae.save(tmp_path / "model")
    predictor = Predictor.load(str(tmp_path / "model"))
    again = Autoencoder.load(tmp_path / "model")
    for what in ("encode", "hash", "anomaly", "reconstruct"):
        expected = getattr(ae, what)(X)
        assert getattr(predictor, what)(X).tolist() == expected.tolist()
        assert getattr(again, what)(X).tolist() == expected.tolist()
    assert again.threshold_ == ae.threshold_
    assert again.history_ == ae.history_
    assert again.dataset_ == ae.dataset_
    again.save(tmp_path / "copy")
    assert load(str(tmp_path / "copy")).encode(X).tolist() == ae.encode(X).tolist()
    assert clone(again).fit(X).encode(X).tolist() == ae.encode(X).tolist()


def test_it_is_saved_over_another_model_but_in_none(X: np.ndarray, tmp_path: Path) -> None:
    made = make(epochs=1).fit(X)
    made.save(tmp_path / "model")
    with pytest.raises(DataError, match="lies in the folder of an artifact"):
        made.save(tmp_path / "model" / "better")
    assert make(epochs=1, random_state=1).fit(X).save(tmp_path / "model") == (
        load(str(tmp_path / "model")).artifact.digest
    )


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_several_seeds_score_together(X: np.ndarray, tmp_path: Path, combine: str) -> None:
    """Each member is the estimator of its own random state; one of them leads."""
    ae = make(seeds=3, combine=combine).fit(X)
    solos = [make(random_state=7 + index).fit(X) for index in range(3)]
    own = np.stack([solo.anomaly(X) for solo in solos])
    together = own.mean(axis=0) if combine == "mean" else own.max(axis=0)
    np.testing.assert_allclose(ae.anomaly(X), together, rtol=1e-12)
    errors = [min(record["holdout_mse"] for record in solo.history_) for solo in solos]
    lead = int(np.argmin(errors))
    made = ae.predictor_.artifact.manifest
    assert made.ensemble.model_dump() == {"members": 3, "primary": lead + 1, "combine": combine}
    np.testing.assert_array_equal(ae.encode(X), solos[lead].encode(X))
    np.testing.assert_array_equal(ae.reconstruct(X), solos[lead].reconstruct(X))
    assert made.metrics["holdout_mse"] == errors[lead]
    assert -1 <= made.metrics["rank_agreement"] <= 1
    assert [record["member"] for record in ae.history_] == [1, 1, 2, 2, 3, 3]

    ae.save(tmp_path / "model")
    again = Autoencoder.load(tmp_path / "model")
    assert (again.seeds, again.combine, again.random_state) == (3, combine, 7)
    np.testing.assert_array_equal(again.anomaly(X), ae.anomaly(X))
    np.testing.assert_array_equal(load(str(tmp_path / "model")).anomaly(X), ae.anomaly(X))
    assert again.threshold_ == ae.threshold_
    np.testing.assert_array_equal(clone(again).fit(X).anomaly(X), ae.anomaly(X))
    again.save(tmp_path / "copy")
    np.testing.assert_array_equal(load(str(tmp_path / "copy")).anomaly(X), ae.anomaly(X))


def test_one_seed_has_nothing_to_combine(X: np.ndarray) -> None:
    with pytest.raises(
        SpecError, match="train.combine: max has no effect with one seed; set train"
    ):
        make(combine="max").fit(X)
    ae = make().fit(X)
    assert ae.predictor_.artifact.manifest.ensemble is None
    assert "rank_agreement" not in ae.predictor_.artifact.manifest.metrics


def test_same_random_state_same_bits_and_the_callers_random_state_stays(X: np.ndarray) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    ae = make().fit(X)
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads
    assert make().fit(X).encode(X).tolist() == ae.encode(X).tolist()
    assert make(random_state=8).fit(X).encode(X).tolist() != ae.encode(X).tolist()
    free = make(random_state=None)
    assert free.fit(X).encode(X).tolist() != free.fit(X).encode(X).tolist()
    seed = ae.predictor_.artifact.manifest.job["train"]["seed"]
    assert seed == 7


def test_missing_cells(X: np.ndarray) -> None:
    holes = X.copy()
    holes[3, 2], holes[9, 4] = np.nan, np.inf
    with pytest.raises(InputError) as caught:
        make().fit(pd.DataFrame(holes, columns=NAMES))
    assert str(caught.value) == (
        "row 3, 'c2': found nan (2 such rows); missing='error' allows no NaN or infinity here: "
        "fit with missing='mean', or clean the rows"
    )
    assert issubclass(InputError, DataError)
    assert issubclass(InputError, ValueError)
    dropped = make(missing="drop_row").fit(holes)
    assert dropped.dataset_["dropped_rows"] == 2
    assert dropped.dataset_["train_rows"] + dropped.dataset_["holdout_rows"] == 198
    with pytest.raises(
        InputError, match=r"row 3, 'x\[2\]': found nan .2 such rows.; missing='drop"
    ):
        dropped.encode(holes)
    filled = make(missing="mean").fit(holes)
    assert filled.dataset_["imputed_cells"] == 2
    assert np.isfinite(filled.encode(holes)).all()
    nulls = pa.table({"v": [*X[:9].tolist(), None]})
    assert make(missing="drop_row").fit(nulls).dataset_["dropped_rows"] == 1


def test_constant_columns_are_told(X: np.ndarray) -> None:
    flat = X.copy()
    flat[:, 1] = 3.0
    ae = make(constant="drop").fit(pd.DataFrame(flat, columns=NAMES))
    assert ae.dataset_["constant_names"] == ["c1"]
    assert (ae.reconstruct(pd.DataFrame(flat[:5], columns=NAMES))[:, 1] == 3.0).all()


def test_mistakes_are_told_together(X: np.ndarray) -> None:
    with pytest.raises(SpecError) as caught:
        make(activation="tahn", epochs=0, loss="msee").fit(X)
    text = str(caught.value)
    assert text.startswith("job: 3 mistakes\n")
    assert "model.network.activation: found 'tahn', did you mean 'tanh'?" in text
    assert "train.epochs: found 0; input should be greater than 0" in text
    assert (
        "model.loss: found kind 'msee', did you mean 'mse'? Allowed: mse, mae, huber, bce" in text
    )
    with pytest.raises(SpecError, match="lr is given twice: as lr and in optimizer; keep one"):
        make(lr=0.1, optimizer={"kind": "adam", "lr": 0.1}).fit(X)
    with pytest.raises(SpecError, match="loss bce needs features in"):
        make(loss="bce").fit(X)


def test_rows_that_do_not_fit(X: np.ndarray) -> None:
    ae = make().fit(X)
    with pytest.raises(ValueError, match="X has 5 features, but Autoencoder is expecting 6"):
        ae.encode(X[:, :5])
    with pytest.raises(InputError, match=r"codes of shape \(2, 5\), the model needs \(rows, 3\)"):
        ae.decode(np.zeros((2, 5)))
    with pytest.raises(InputError, match="row 1, column 'v': a list of 2 values, 1 are needed"):
        ae.encode(pa.table({"v": [[1.0], [1.0, 2.0]]}))
    for what in ("encode", "hash", "anomaly", "reconstruct", "decode", "save"):
        with pytest.raises(NotFittedError):
            getattr(make(), what)(X)


def test_among_other_estimators(X: np.ndarray) -> None:
    grid = {"widths": [(1,), (5,)], "epochs": np.array([1, 2])}
    search = GridSearchCV(make(), grid, cv=2).fit(X)
    assert search.best_params_["widths"] == (5,)
    pipeline = make_pipeline(StandardScaler(), make()).set_output(transform="pandas")
    assert list(pipeline.fit_transform(X).columns) == [f"autoencoder{i}" for i in range(3)]


def test_verbose_speaks_and_is_quiet_otherwise(X: np.ndarray, capsys: Any) -> None:
    make().fit(X)
    assert capsys.readouterr().out == ""
    make(verbose=True).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("held out, 0 dropped, 0 cells imputed")
    assert [line.split("  ")[0] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    make(verbose=True, seeds=2, phases=[{"kind": "greedy", "epochs": 1}]).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("member 1: phase 1 (greedy), layer 1 of 2, epoch 1/1: error ")
    assert [line.split("  loss")[0] for line in lines if line.startswith("epoch")] == [
        "epoch 1/2  member 1/2",
        "epoch 2/2  member 1/2",
        "epoch 1/2  member 2/2",
        "epoch 2/2  member 2/2",
    ]


def test_neither_ray_nor_mlflow_nor_pandas_is_needed() -> None:
    """scikit-learn imports pandas when it is there, so here it is not."""
    script = """
import sys
sys.modules["pandas"] = sys.modules["polars"] = None
import numpy as np
from hourglass import Autoencoder
X = np.random.default_rng(0).normal(size=(50, 4))
Autoencoder(epochs=1).fit(X).encode(X)
print(sorted({"ray", "mlflow"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("scaling", ["range", "standard"])
def test_errors_of_features_add_up_and_are_in_the_units_of_the_rows(
    X: np.ndarray, scaling: str
) -> None:
    """A part is the square of the error over the scale, by the number of features."""
    table = X * np.arange(1, X.shape[1] + 1)
    ae = make(scaling=scaling).fit(table)
    parts, errors = ae.feature_errors(table)
    np.testing.assert_allclose(parts.sum(axis=1), ae.anomaly(table), rtol=1e-5)
    np.testing.assert_allclose(errors, table - ae.reconstruct(table), rtol=1e-6, atol=1e-9)
    scale = ae.predictor_.module.preprocessing.scale_F.numpy()
    np.testing.assert_allclose(parts, np.square(errors / scale) / len(scale), rtol=1e-3, atol=1e-7)


def test_tasks_are_those_of_the_commands(X: np.ndarray) -> None:
    """Methods give the bits of the functions behind the commands, and errors about arguments."""
    ae = make(corruption={"kind": "gaussian", "sd": 0.1}).fit(X)
    model = ae.predictor_
    np.testing.assert_array_equal(ae.encode(X, layer=1), model.encode(X, layer=1))
    way = ae.interpolate(X[:2], steps=5)
    np.testing.assert_array_equal(way[[0, -1]], ae.reconstruct(X[:2]))
    moved = ae.traverse(X[:1], unit=0, values=[-0.5, 0.5])
    np.testing.assert_array_equal(moved, generate.traverse(model, X[0], 0, np.array([-0.5, 0.5])))
    noisy, denoised = ae.denoise(X[:9], seed=3)
    np.testing.assert_array_equal(denoised, ae.reconstruct(noisy))
    distances, found = ae.similar(X, X[4:6], k=3)
    assert found[:, 0].tolist() == [4, 5]
    assert (distances[:, 0] == 0).all()
    for wrong, message in (
        (lambda: ae.interpolate(X[:3]), "X: found 3 rows, needed are 2"),
        (lambda: ae.encode(X, layer=9), "layer: found 9, allowed are 1 to"),
        (lambda: ae.generate(3), "has no prior"),
        (lambda: ae.similar(X, X[:1], k=10**6), "k: found 1000000, allowed are 1 to"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


def test_a_variational_model_generates(X: np.ndarray) -> None:
    ae = make(preset="variational").fit(X)
    rows = ae.generate(5, seed=1)
    assert rows.shape == (5, X.shape[1])
    np.testing.assert_array_equal(rows, ae.generate(5, seed=1))
    assert not np.array_equal(rows, ae.generate(5, seed=2))


def test_early_stop_with_nothing_to_watch_is_refused(X: np.ndarray) -> None:
    few = X[:10]
    with pytest.raises(SpecError) as caught:
        make(early_stop={"patience": 1}).fit(few)
    assert str(caught.value) == (
        "train.early_stop watches the holdout error, but none of the 10 rows is held out; raise "
        "data.holdout, or remove it"
    )
    assert make().fit(few).dataset_["holdout_rows"] == 0
    assert make(early_stop={"patience": 1}, holdout=0.5).fit(few).dataset_["holdout_rows"] > 0


@pytest.mark.parametrize("preset", ["anomoly", ["anomaly"], 3])
def test_a_misspelt_preset_and_policy_are_told_as_such(X: np.ndarray, preset: Any) -> None:
    with pytest.raises(SpecError) as caught:
        make(widths=None, preset=preset, missing="men", combine="men").fit(X)
    printed = str(caught.value).splitlines()
    assert printed[0] == "job: 3 mistakes"
    assert printed[1].startswith("  job: data.missing: found 'men', did you mean 'mean'? Allowed: ")
    assert printed[2].startswith(f"  job: model.preset: found {preset!r}")
    assert printed[3].startswith(
        "  job: train.combine: found 'men', did you mean 'mean'? Allowed: "
    )
