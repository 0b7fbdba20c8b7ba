"""The commands that put a trained model to a task, on shards and a model on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from hourglass import Autoencoder, Predictor
from hourglass.cli import app
from hourglass.data.manifest import scan
from hourglass.data.schema import FeatureSchema
from hourglass.errors import DataError
from hourglass.inference import parts
from hourglass.inference.generate import denoise, gain, interpolate, prior, traverse
from hourglass.inference.neighbours import Index, classify
from hourglass.inference.table_io import as_table


def hourglass(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: Any) -> list[str]:
    done = hourglass(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output.splitlines()


def write(path: Path, rows: np.ndarray, label: list[Any], groups: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": pa.array(list(rows)), "label": pa.array(label)}
    pq.write_table(pa.table(columns), path, row_group_size=groups, write_page_checksum=True)


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: np.ndarray,
    save_artifact: Callable[..., str],
) -> Path:
    """The working folder: `model`, and `data` of two shards with 300 rows."""
    monkeypatch.chdir(tmp_path)
    save_artifact("model")
    parity = (rows[:, 0] > 3).astype(int).tolist()
    write(tmp_path / "data" / "a.parquet", rows[:200], parity[:200])
    write(tmp_path / "data" / "b.parquet", rows[200:], parity[200:])
    return tmp_path


def cells(path: str, column: str) -> np.ndarray:
    return np.array(pq.read_table(path)[column].to_pylist())


def test_encode_writes_the_codes_in_shard_order(folder: Path, rows: np.ndarray) -> None:
    assert printed("encode", "model", "data", "--out", "out/codes.parquet") == [
        "rows         300 of data",
        "output       out/codes.parquet: 300 rows, code of 5 units",
    ]
    written = pq.read_table("out/codes.parquet")
    assert written.schema.field("code").type == pa.list_(pa.float32(), 5)
    np.testing.assert_array_equal(cells("out/codes.parquet", "row"), np.arange(300))
    expected = Predictor.load("model").encode(rows)
    np.testing.assert_array_equal(cells("out/codes.parquet", "code"), expected)


def test_encode_writes_a_hidden_layer(folder: Path, rows: np.ndarray) -> None:
    lines = printed("encode", "model", "data", "--out", "l.parquet", "--layer", 1)
    assert lines[-1] == "output       l.parquet: 300 rows, layer_1 of 7 units"
    expected = Predictor.load("model").encode(rows, layer=1)
    np.testing.assert_array_equal(cells("l.parquet", "layer_1"), expected)


def test_decode_of_encode_is_the_reconstruction(folder: Path, rows: np.ndarray) -> None:
    printed("encode", "model", "data", "--out", "codes.parquet")
    assert printed("decode", "model", "codes.parquet", "--out", "r.parquet") == [
        "rows         300 of codes.parquet",
        "output       r.parquet: 300 rows of 12 features",
    ]
    assert pq.read_schema("r.parquet") == pa.schema(
        [("row", pa.int64()), ("image", pa.list_(pa.float32(), 12))]
    )
    np.testing.assert_array_equal(cells("r.parquet", "row"), np.arange(300))
    expected = Predictor.load("model").reconstruct(rows)
    np.testing.assert_array_equal(cells("r.parquet", "image"), expected)


def test_decode_keeps_the_order_and_the_row_of_the_codes(folder: Path, rows: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(300)
    codes = Predictor.load("model").encode(rows)[order]
    for part, at in (("a", slice(0, 120)), ("b", slice(120, 300))):
        columns = {
            "mine": pa.array(codes[at].astype(np.float64).tolist()),
            "row": order[at],
        }
        (folder / "codes").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), f"codes/{part}.parquet", write_page_checksum=True)
    lines = printed(
        *("decode", "model", "codes", "--column", "mine"),
        *("--max-rows", 250, "--out", "r.parquet"),
    )
    assert lines[0] == "rows         250 of codes, 50 left out by --max-rows 250"
    assert pq.read_schema("r.parquet").names == ["row", "image"]
    np.testing.assert_array_equal(cells("r.parquet", "row"), order[:250])
    made, expected = cells("r.parquet", "image"), Predictor.load("model").reconstruct(rows)
    np.testing.assert_array_equal(made, expected[order[:250]])
    assert (made != expected[:250]).any()  # another order would be seen


def test_decode_takes_what_score_writes(folder: Path, rows: np.ndarray) -> None:
    model = Predictor.load("model")
    options = parts.Options(("code", "hash"), ("label",), 0.5, "error", "model", "", "digest")
    for shard in scan("data")[0].shards:
        item = parts.Item(shard, tuple(range(len(shard.rows))))
        parts.write(f"scores/{item.name(options.key)}", item, options, model)
    printed("decode", "model", "scores", "--out", "r.parquet")
    assert pq.read_schema("r.parquet").names == ["shard", "row_group", "row", "image"]
    np.testing.assert_array_equal(cells("r.parquet", "image"), model.reconstruct(rows))
    assert cells("r.parquet", "shard").tolist() == ["a.parquet"] * 200 + ["b.parquet"] * 100
    numbers = np.concatenate([np.arange(200), np.arange(100)])
    np.testing.assert_array_equal(cells("r.parquet", "row_group"), numbers // 64)
    np.testing.assert_array_equal(cells("r.parquet", "row"), numbers % 64)


def test_decode_rounds_and_clips_to_bytes(folder: Path, save_artifact: Callable[..., str]) -> None:
    low_high = np.tile(np.array([[0], [255]], np.uint8), (8, 3))
    columns = {"vector": None, "columns": ("a", "b", "c")}
    save_artifact("bytes", of=low_high, features=columns)
    codes = np.random.default_rng(3).normal(0, 6, (70, 5)).astype(np.float32)
    pq.write_table(pa.table({"code": list(codes)}), "codes.parquet", write_page_checksum=True)
    lines = printed("decode", "bytes", "codes.parquet", "--out", "r.parquet")
    made = np.rint(Predictor.load("bytes").decode(codes))
    clipped = int(((made < 0) | (made > 255)).sum())
    assert 0 < clipped < made.size
    assert lines[-1] == (
        f"output       r.parquet: 70 rows of 3 features, {clipped} cells clipped to 0..255"
    )
    written = pq.read_table("r.parquet")
    assert written.schema == pa.schema([(name, pa.uint8()) for name in "abc"])
    np.testing.assert_array_equal(np.array(written.to_pandas()), made.clip(0, 255))


CODE = [0.5, 0.0, -0.5, 1.0, 0.25]
CODE_REFUSALS: list[tuple[str, pa.Array, str]] = [
    (
        "code",
        pa.array([CODE[:4]], pa.list_(pa.float32(), 4)),
        "c.parquet: column 'code' holds lists of 4 numbers, the model's code has 5 units; decode "
        "with the model that encoded",
    ),
    (
        "code",
        pa.array([CODE, CODE[:4]]),
        "c.parquet: row group 0, row 1, column 'code': a list of 4 values, 5 are needed; vectors "
        "must be equally long",
    ),
    (
        "code",
        pa.array([0.5, 0.25]),
        "c.parquet: column 'code' is double, a code is a list of 5 numbers; name the column that "
        "holds the codes",
    ),
    (
        "codes",
        pa.array([CODE]),
        "c.parquet: no column 'code', did you mean 'codes'? Columns: codes",
    ),
    (
        "code",
        pa.array([CODE, [*CODE[:3], np.nan, 0.0]]),
        "c.parquet: row 1, column 'code': found nan for unit 3, a code has finite numbers only; "
        "remove the row, or encode it again",
    ),
    (
        "code",
        pa.array([CODE, CODE, None], pa.list_(pa.float32(), 5)),
        "c.parquet: row 2, column 'code': found nan for unit 0, a code has finite numbers only; "
        "remove the row, or encode it again",
    ),
]


@pytest.mark.parametrize(("name", "codes", "message"), CODE_REFUSALS)
def test_decode_refuses_what_is_no_code(
    folder: Path, name: str, codes: pa.Array, message: str
) -> None:
    pq.write_table(pa.table({name: codes}), "c.parquet", write_page_checksum=True)
    done = hourglass("decode", "model", "c.parquet", "--out", "r.parquet")
    assert isinstance(done.exception, DataError)
    assert done.exception.exit_code == 2
    assert str(done.exception).replace(f"{folder}/", "") == message
    assert not (folder / "r.parquet").exists()


NOISY = {
    "network": {"widths": [7, 5], "activation": "tanh"},
    "corruption": {"kind": "gaussian", "sd": 0.1},
}


def test_denoise_takes_the_rows_as_noisy(
    folder: Path, rows: np.ndarray, save_artifact: Callable[..., str]
) -> None:
    save_artifact("model", model=NOISY)
    assert printed("denoise", "model", "data", "--out", "d.parquet") == [
        "rows         300 of data",
        "output       d.parquet: 300 rows of 12 features",
    ]
    assert pq.read_schema("d.parquet").names == ["row", "image"]
    np.testing.assert_array_equal(cells("d.parquet", "row"), np.arange(300))
    expected = Predictor.load("model").reconstruct(rows)
    np.testing.assert_array_equal(cells("d.parquet", "image"), expected)


def test_denoise_puts_the_noise_of_training_on_first(
    folder: Path, rows: np.ndarray, save_artifact: Callable[..., str]
) -> None:
    save_artifact("model", model=NOISY)
    options = ("denoise", "model", "data", "--corrupt")
    lines = printed(*options, "--seed", 3, "--out", "d.parquet")
    noisy, denoised = denoise(Predictor.load("model"), rows, 3)
    won = 10 * np.log10(((rows - noisy) ** 2).mean() / ((rows - denoised) ** 2).mean())
    assert lines == [
        "rows         300 of data",
        f"gain         {won:.2f} dB over the noisy rows",
        "output       d.parquet: 300 rows of 12 features",
    ]
    assert pq.read_schema("d.parquet").names == ["row", "noisy_image", "image"]
    np.testing.assert_array_equal(cells("d.parquet", "noisy_image"), noisy)
    np.testing.assert_array_equal(cells("d.parquet", "image"), denoised)
    printed(*options, "--out", "zero.parquet")
    printed(*options, "--seed", 0, "--out", "same.parquet")
    assert Path("zero.parquet").read_bytes() == Path("same.parquet").read_bytes()
    assert (cells("zero.parquet", "noisy_image") != noisy).any()


def test_noisy_columns_are_floats_as_the_model_saw_them(
    folder: Path, save_artifact: Callable[..., str]
) -> None:
    made = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)
    save_artifact("bytes", model=NOISY, of=made, features={"vector": None, "columns": tuple("abc")})
    table = pa.table({name: made[:, i] for i, name in enumerate("abc")})
    pq.write_table(table, "abc.parquet", write_page_checksum=True)
    printed("denoise", "bytes", "abc.parquet", "--corrupt", "--out", "d.parquet")
    written = pq.read_table("d.parquet")
    assert written.schema == pa.schema(
        [("row", pa.int64())]
        + [(f"noisy_{name}", pa.float32()) for name in "abc"]
        + [(name, pa.uint8()) for name in "abc"]
    )
    noisy = np.array(written.select([f"noisy_{name}" for name in "abc"]).to_pandas())
    assert noisy.min() < 0
    assert noisy.max() > 255
    denoised = np.rint(Predictor.load("bytes").reconstruct(noisy)).clip(0, 255)
    np.testing.assert_array_equal(np.array(written.select(list("abc")).to_pandas()), denoised)


def test_gain_by_hand_leaves_missing_cells_out() -> None:
    clean = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    assert gain(clean, clean + 10, np.nan_to_num(clean + 1)) == pytest.approx(20.0)
    assert gain(clean, clean + 1, clean + 10) == pytest.approx(-20.0)


def test_a_feature_keeps_its_name(folder: Path, save_artifact: Callable[..., str]) -> None:
    made = np.arange(20, dtype=np.float32).reshape(10, 2)
    save_artifact("two", model=NOISY, of=made, features={"vector": None, "columns": ("a", "row")})
    table = pa.table({"a": made[:, 0], "row": made[:, 1]})
    pq.write_table(table, "two.parquet", write_page_checksum=True)
    done = hourglass("denoise", "two", "two.parquet", "--out", "d.parquet")
    assert str(done.exception) == (
        "column 'row': is a feature of the model, so the output cannot have another column of that "
        "name; call the model in Python instead"
    )
    assert not Path("d.parquet").exists()


def test_a_seed_needs_corruption(folder: Path) -> None:
    done = hourglass("denoise", "model", "data", "--seed", 1, "--out", "d.parquet")
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == (
        "Error: Invalid value: --seed needs --corrupt, which adds the noise"
    )


def test_rows_beyond_the_limit_are_told(folder: Path) -> None:
    lines = printed("encode", "model", "data", "--out", "c.parquet", "--max-rows", 230)
    assert lines[0] == "rows         230 of data, 70 left out by --max-rows 230"
    np.testing.assert_array_equal(cells("c.parquet", "row"), np.arange(230))


def test_dropped_rows_are_told_and_keep_the_numbers_of_the_others(
    folder: Path, rows: np.ndarray, save_artifact: Callable[..., str]
) -> None:
    save_artifact("model", features={"missing": "drop_row"})
    holes = rows[:5].copy()
    holes[[0, 3], 7] = np.nan
    write(folder / "holes" / "a.parquet", holes, [0] * 5, groups=2)
    lines = printed("encode", "model", "holes", "--out", "c.parquet")
    assert lines[0] == "rows         3 of holes, 2 dropped for missing cells"
    assert cells("c.parquet", "row").tolist() == [1, 2, 4]
    done = hourglass("similar", "model", "holes", "--row", 3, "-k", 1)
    assert str(done.exception) == "holes: row 3 was dropped, it has missing cells"
    write(folder / "holes" / "a.parquet", holes[[0, 3]], [0] * 2)
    done = hourglass("encode", "model", "holes", "--out", "d.parquet")
    assert str(done.exception) == ("holes: each of the 2 rows read has missing cells; none is left")


@pytest.mark.parametrize("by", ["code", "hash"])
def test_similar_prints_the_row_then_its_neighbours(
    folder: Path, rows: np.ndarray, by: str
) -> None:
    lines = printed(
        "similar", "model", "data", "--row", 250, "-k", 4, "--by", by, "--label", "label"
    )
    model = Predictor.load("model")
    points = model.encode(rows) if by == "code" else model.hash(rows)
    distances, found = Index(points).nearest(points[250:251], 300)
    labels = cells("data", "label")
    expected = [
        (at, d, labels[at]) for d, at in zip(distances[0], found[0], strict=True) if at != 250
    ]
    shown = "{:>10} {:>10.4f}  {}" if by == "code" else "{:>10} {:>10d}  {}"
    assert lines == [
        "rows         300 of data",
        "       row   distance  label",
        shown.format(250, 0, labels[250]),
        *(shown.format(*one) for one in expected[:4]),
    ]


def test_similar_shows_a_row_among_its_copies_once(folder: Path, rows: np.ndarray) -> None:
    write(folder / "same" / "a.parquet", np.repeat(rows[:1], 6, axis=0), [0] * 6)
    lines = printed("similar", "model", "same", "--row", 5, "-k", 2)
    assert [line.split()[0] for line in lines[2:]] == ["5", "0", "1"]


def test_classify_probe_prints_accuracies_and_the_floor(folder: Path, rows: np.ndarray) -> None:
    lines = printed(
        *("classify-probe", "model", "--label", "label"),
        *("--train", "data/a.parquet", "--test", "data/b.parquet"),
    )
    assert lines[:2] == ["rows         200 of data/a.parquet", "rows         100 of data/b.parquet"]
    model = Predictor.load("model")
    parity = cells("data", "label")
    codes = model.encode(rows)
    found = classify(codes[:200], parity[:200], codes[200:], parity[200:])
    assert [line.split(" in ")[0] for line in lines[2:]] == [
        f"7 neighbours {found.knn_accuracy:.4f}",
        f"logistic     {found.logistic_accuracy:.4f}",
        f"baseline     {found.majority_baseline:.4f} (always the most frequent label)",
    ]


def test_generate_between_two_rows(folder: Path, rows: np.ndarray) -> None:
    lines = printed(
        *("generate", "model", "--between", 3, 250, "--uri", "data"),
        *("--steps", 4, "--out", "g.parquet"),
    )
    assert lines[-1] == "output       g.parquet: 4 rows of 12 features"
    assert pq.read_schema("g.parquet").field("image").type == pa.list_(pa.float32(), 12)
    expected = interpolate(Predictor.load("model"), rows[3], rows[250], 4)
    np.testing.assert_array_equal(cells("g.parquet", "image"), expected)


def test_generate_traverses_the_range_of_a_unit(folder: Path, rows: np.ndarray) -> None:
    lines = printed(
        *("generate", "model", "--traverse", 1, "--row", 9, "--uri", "data"),
        *("--out", "g.parquet"),
    )
    model = Predictor.load("model")
    unit = model.encode(rows)[:, 1]
    low, high = float(unit.min()), float(unit.max())
    assert lines[1] == f"unit 1       {low:.4f} to {high:.4f}, its range in the rows read"
    expected = traverse(model, rows[9], 1, np.linspace(low, high, 10, dtype=np.float32))
    np.testing.assert_array_equal(cells("g.parquet", "image"), expected)


def test_generate_draws_rows_in_the_columns_and_types_of_training(folder: Path) -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, (200, 3)).astype(np.uint8)
    vae = Autoencoder(
        [4, 2],
        code="gaussian_posterior",
        penalties=[{"kind": "kl_prior", "beta": 0.01}],
        epochs=1,
        random_state=0,
    )
    vae.fit(pa.table({name: bytes_[:, i] for i, name in enumerate("abc")})).save("vae")
    lines = printed("generate", "vae", "--count", 50, "--seed", 7, "--out", "g.parquet")
    written = pq.read_table("g.parquet")
    assert written.schema == pa.schema([(name, pa.uint8()) for name in "abc"])
    made = np.rint(prior(Predictor.load("vae"), 50, 7))
    clipped = int(((made < 0) | (made > 255)).sum())
    note = f", {clipped} cells clipped to 0..255" if clipped else ""
    assert lines == [f"output       g.parquet: 50 rows of 3 features{note}"]
    np.testing.assert_array_equal(np.array(written.to_pandas()), made.clip(0, 255))


def test_cells_are_rounded_and_clipped_to_bytes_and_counted() -> None:
    features = FeatureSchema("image", (), 3, "uint8")
    table, clipped = as_table(np.array([[-3.0, 0.6, 254.4], [300.0, -0.4, 255.4]]), features)
    assert table["image"].to_pylist() == [[0, 1, 254], [255, 0, 255]]
    assert clipped == 2


def test_nothing_is_overwritten(folder: Path) -> None:
    before = (folder / "data" / "a.parquet").read_bytes()
    for command in (
        ("encode", "model", "data/a.parquet"),
        ("decode", "model", "data/b.parquet", "--column", "image"),
        ("denoise", "model", "data/a.parquet"),
        ("generate", "model", "--between", 0, 1, "--uri", "data"),
    ):
        done = hourglass(*command, "--out", "data/a.parquet")
        assert isinstance(done.exception, DataError)
        assert str(done.exception) == (
            "data/a.parquet: exists already; remove it, or write elsewhere"
        )
    assert (folder / "data" / "a.parquet").read_bytes() == before


DATA_REFUSALS: list[tuple[tuple[Any, ...], str]] = [
    *(
        (
            ("denoise", "model", "data", "--out", "g.parquet", *corrupt),
            "the model was trained without corruption, so there is no noise that it removes; train "
            "one with `corruption` set",
        )
        for corrupt in ((), ("--corrupt",))
    ),
    (
        ("generate", "model", "--count", 3, "--out", "g.parquet"),
        "code 'plain' has no prior: its codes have no known distribution to draw from; generate needs "
        "a model with code gaussian_posterior, or an adversary",
    ),
    (
        ("generate", "model", "--traverse", 5, "--row", 0, "--uri", "data", "--out", "g.parquet"),
        "unit: found 5, allowed are 0 to 4: the code has 5 units",
    ),
    (
        ("similar", "model", "data", "--row", 300),
        "data: no row 300; read were rows 0 to 299",
    ),
    (
        ("similar", "model", "data", "--row", 40, "--max-rows", 40),
        "data: no row 40; read were rows 0 to 39, 260 more were left out; raise the limit",
    ),
    (
        ("similar", "model", "data", "--row", 4, "-k", 300),
        "-k: found 300, allowed are 1 to 299, the number of other rows",
    ),
    (
        ("similar", "model", "data", "--row", 4, "--label", "lable"),
        "data/a.parquet: no column 'lable', did you mean 'label'? Columns: image, label",
    ),
    (
        ("classify-probe", "model", "--train", "data", "--test", "data", "--label", "image"),
        "data: column 'image' is list<element: float>, a label is one value",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), DATA_REFUSALS)
def test_refusals(folder: Path, arguments: tuple[Any, ...], message: str) -> None:
    done = hourglass(*arguments)
    assert str(done.exception).replace(f"{folder}/", "") == message
    assert not (folder / "g.parquet").exists()


def test_every_row_needs_a_label(folder: Path, rows: np.ndarray) -> None:
    write(folder / "some" / "a.parquet", rows[:3], [1, None, 0])
    done = hourglass(
        *("classify-probe", "model", "--train", "some", "--test", "data", "--label", "label")
    )
    assert str(done.exception) == (
        "some: column 'label' is null in 1 of 3 rows; every row needs a label"
    )


OPTION_REFUSALS: list[tuple[tuple[Any, ...], str]] = [
    ((), "found none; give exactly one of --count, --between, --traverse"),
    (
        ("--count", 3, "--traverse", 1),
        "found --count and --traverse; give exactly one of --count, --between, --traverse",
    ),
    (("--between", 1, 2), "--between needs --uri"),
    (("--traverse", 1, "--uri", "data"), "--traverse needs --row"),
    (("--count", 3, "--steps", 4), "--count does not accept --steps; remove it"),
    (
        ("--between", 1, 2, "--uri", "data", "--seed", 1),
        "--between does not accept --seed; remove it",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTION_REFUSALS)
def test_sources_of_codes_are_exclusive(options: tuple[Any, ...], message: str) -> None:
    done = hourglass("generate", "model", "--out", "g.parquet", *options)
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == f"Error: Invalid value: {message}"
