"""Reports: statistics against NumPy and hand values, sections, and a page without requests.

Every model here is a real artifact; nothing needs Ray, and only the last tests need MLflow.
"""

import base64
import dataclasses
import io
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import hourglass
from hourglass import Autoencoder, artifact, cli, tracking
from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.data import order
from hourglass.data.manifest import scan
from hourglass.errors import DataError, RegistryError
from hourglass.inference import generate
from hourglass.report import baseline, charts, codes, evaluation, page, pictures, report
from hourglass.report.selection import Context, evaluate, select
from hourglass.settings import Settings
from hourglass.tracking import mlflow as store

RNG = np.random.default_rng(3)
HOSTILE = '"><script>alert(1)</script><a href="http://evil.example/x">'
EVERY = ["Model", "Loss", "Baselines", "Reconstructions", "Interpolations", "Codes", "Code units",
         "Traversals", "Scores", "Hashes", "First-layer weights"]  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"home": tmp_path / "home", "MLFLOW_TRACKING_URI": None})


def images(count: int = 240, side: int = 6) -> np.ndarray:
    """Rows of `side` x `side` pixels, uint8, of two directions and some noise."""
    wide = RNG.normal(size=(count, 2)) @ RNG.normal(size=(2, side * side))
    return (128 + 40 * wide + RNG.normal(size=wide.shape)).clip(0, 255).astype(np.uint8)


def write_images(folder: Path, made: np.ndarray, **columns: Any) -> str:
    """Two shards of two row groups each, with further `columns`."""
    folder.mkdir(parents=True)
    table = pa.table(
        {"image": pa.array(list(made), pa.list_(pa.uint8(), made.shape[1])), **columns}
    )
    half = len(table) // 2
    for index in range(2):
        part = table.slice(index * half, half)
        path = folder / f"part-{index}.parquet"
        pq.write_table(part, path, row_group_size=half // 2, write_page_checksum=True)
    return str(folder)


def fitted(folder: Path, made: np.ndarray, **parameters: Any) -> str:
    table = pa.table({"image": pa.array(list(made), pa.list_(pa.uint8(), made.shape[1]))})
    model = Autoencoder(epochs=3, batch_size=32, random_state=0, **parameters).fit(table)
    model.save(str(folder))
    return str(folder)


# -- numbers ----------------------------------------------------------------------------------


def test_the_pca_baseline_is_the_best_linear_model() -> None:
    """Against the singular values: what PCA leaves over is their tail; FVU is its share."""
    made = RNG.normal(size=(80, 7)) * np.arange(1, 8)
    mean = made.mean(axis=0)
    found = baseline.pca(made, made, mean, 3)
    values = np.linalg.svd(made - mean, compute_uv=False)
    assert found.units == 3
    assert found.mse == pytest.approx(np.square(values[3:]).sum() / made.size, rel=1e-9)
    assert found.fvu == pytest.approx(np.square(values[3:]).sum() / np.square(values).sum())


def test_pca_is_exact_on_the_other_half_of_rows_of_its_rank() -> None:
    made = RNG.normal(size=(60, 2)) @ RNG.normal(size=(2, 9)) + 5.0
    assert baseline.pca(made[::2], made[1::2], made.mean(axis=0), 2).mse < 1e-20
    assert baseline.pca(made[::2], made[1::2], made.mean(axis=0), 1).mse > 1e-3


def test_pca_has_no_more_components_than_the_rows_allow() -> None:
    made = RNG.normal(size=(20, 4))
    found = baseline.pca(made, made, made.mean(axis=0), 50)
    assert (found.units, found.mse) == (4, pytest.approx(0.0, abs=1e-20))


def test_pca_at_widths_is_one_pca_truncated() -> None:
    made, other = RNG.normal(size=(2, 80, 7)) * np.arange(1, 8)
    mean = made.mean(axis=0)
    axes = np.linalg.svd(made - mean)[2]
    found = baseline.pca_at(made, other, mean, (1, 3, 50))
    for width, each in zip((1, 3, 7), found, strict=True):
        rest = (other - mean) @ axes[width:].T
        assert each.units == width
        assert each.mse == pytest.approx(np.square(rest).sum() / other.size, abs=1e-12)


def test_logistic_pca_finds_a_logistic_model_that_pca_cannot() -> None:
    """Probabilities of a rank-2 logistic model, saturated: linear in the logits, not in the rows."""
    logits = 4.0 * RNG.normal(size=(300, 2)) @ RNG.normal(size=(2, 12))
    made = 1.0 / (1.0 + np.exp(-logits))
    mean = made.mean(axis=0)
    linear = baseline.pca(made[::2], made[1::2], mean, 2)
    logistic = baseline.logistic_pca(made[::2], made[1::2], mean, 2)
    assert logistic.mse < 0.05 * linear.mse
    assert logistic == baseline.logistic_pca(made[::2], made[1::2], mean, 2)


def test_principal_components_against_svd() -> None:
    made = RNG.normal(size=(50, 6))
    u, values, _ = np.linalg.svd(made - made.mean(axis=0), full_matrices=False)
    found = charts.principal(made, 2)
    np.testing.assert_allclose(np.abs(found), np.abs((u * values)[:, :2]), atol=1e-10)
    assert charts.principal(made[:, :1], 2)[:, 1].tolist() == [0.0] * 50


def test_dead_units_by_hand() -> None:
    code = np.array([[0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.6, 0.0], [0.0, 1.0, 0.5, 2.0]])
    assert charts.dead_units(code).tolist() == [True, True, False, False]


def test_bits_by_hand() -> None:
    bits = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]], dtype=np.uint8)
    assert charts.bit_balance(bits).tolist() == [0.5, 0.5, 0.5, 1.0]
    found = charts.bit_correlation(bits)
    np.testing.assert_allclose(found[:3, :3], np.corrcoef(bits[:, :3].T), atol=1e-12)
    assert found[0, 1] == pytest.approx(-1.0)
    assert np.isnan(found[3]).all()


def test_buckets_by_hand() -> None:
    sizes = charts.bucket_sizes(np.array([[1, 0], [1, 0], [1, 1], [1, 0], [2, 0]], dtype=np.uint8))
    assert sizes.tolist() == [3, 1, 1]
    assert charts.doubling(np.array([1, 1, 2, 3, 4, 9])) == {"1": 2, "2-3": 2, "4-7": 1, "8-15": 1}


def test_cosine_by_hamming_by_hand() -> None:
    """Two directions and two hashes: equal hashes are parallel rows, all bits apart are orthogonal."""
    made = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 5.0], [0.0, 0.0]])
    bits = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=np.uint8)
    found = charts.cosine_by_hamming(made, bits, pairs=2500)
    assert found.hamming.tolist() == [0, 3]  # the row of length 0 has no cosine
    np.testing.assert_allclose(found.cosine, [0.0, 1.0], atol=1e-12)
    again = charts.cosine_by_hamming(made, bits, pairs=2500)
    assert found.pairs.tolist() == again.pairs.tolist()
    assert charts.cosine_by_hamming(made, bits, 2500, fewest=2500).hamming.tolist() == []


def test_cosine_by_hamming_against_all_pairs() -> None:
    made, bits = RNG.normal(size=(40, 5)), RNG.integers(0, 2, size=(40, 3)).astype(np.uint8)
    unit = made / np.linalg.norm(made, axis=1, keepdims=True)
    i, j = np.triu_indices(40, 1)
    apart, hamming = 1.0 - (unit[i] * unit[j]).sum(axis=1), (bits[i] != bits[j]).sum(axis=1)
    found = charts.cosine_by_hamming(made, bits, pairs=200_000)
    every = [apart[hamming == distance].mean() for distance in range(4)]
    np.testing.assert_allclose(found.cosine, every, atol=0.02)


@pytest.mark.parametrize("skewed", [True, False])
def test_bins_hold_every_value(skewed: bool) -> None:
    made = RNG.lognormal(sigma=2.0, size=500)
    found = charts.bins(made, skewed=skewed)
    assert (found.counts.sum(), found.log) == (500, skewed)
    assert charts.bins(np.full(9, 2.0)).counts.sum() == 9


def test_the_largest_values_come_first() -> None:
    assert charts.largest(np.array([0.1, 0.9, 0.5, 0.9]), 3).tolist() == [1, 3, 2]


def test_png_holds_the_pixels() -> None:
    for channels in (1, 3):
        made = RNG.integers(0, 256, size=(4, 5, 2, channels)).astype(np.uint8)
        sheet = np.asarray(Image.open(io.BytesIO(pictures.sheet(made, across=2))))
        sheet = sheet.reshape(*sheet.shape[:2], channels)
        assert sheet.shape == (11, 5, channels)
        np.testing.assert_array_equal(sheet[6:11, 3:5], made[3])
    assert zlib.crc32(b"IEND").to_bytes(4, "big") == pictures.sheet(made, 2)[-4:]


def test_channels_first_and_last_are_the_same_picture() -> None:
    last = RNG.integers(0, 256, size=(3, 5, 6, 3)).astype(np.uint8)
    first = last.transpose(0, 3, 1, 2).reshape(3, -1)
    np.testing.assert_array_equal(pictures.Shape(5, 6, 3, True).of(first), last)
    np.testing.assert_array_equal(pictures.Shape(5, 6, 3).of(last.reshape(3, -1)), last)


# -- rows -------------------------------------------------------------------------------------


def trained_on(folder: Path, uri: str, save: Callable[..., str], **data: Any) -> artifact.Manifest:
    """The manifest of a model whose job says that it was trained on the rows at `uri`."""
    save(folder, of=images(40))
    manifest = artifact.load(str(folder)).manifest
    job = {"data": {"uri": uri, "holdout": 0.25, **data}}
    return manifest.model_copy(update={"job": job})


def test_by_default_the_held_out_rows_of_training(
    tmp_path: Path, save_artifact: Callable[..., str]
) -> None:
    made = images(400)
    uri = write_images(tmp_path / "data", made, label=list(range(400)))
    model = trained_on(tmp_path / "model", uri, save_artifact)
    selection = select(model, None, "label", 5000)
    masks = [order.holdout_mask(f"part-{s}.parquet", g, 0, 100, 0.25)
             for s in range(2) for g in range(2)]  # fmt: skip
    held = np.concatenate(masks)
    assert selection.sample.labels == np.flatnonzero(held).tolist()
    np.testing.assert_array_equal(selection.sample.features, made[held])
    np.testing.assert_array_equal(selection.fitted, made[~held])
    assert selection.sample.places[0] == f"part-0.parquet, 0, {np.flatnonzero(held)[0]}"
    assert f"fitted on {int((~held).sum())} training rows" in selection.split
    assert selection.notes == ()


def test_few_rows_are_spread_over_all_row_groups(
    tmp_path: Path, save_artifact: Callable[..., str]
) -> None:
    uri = write_images(tmp_path / "data", images(400), label=list(range(400)))
    model = trained_on(tmp_path / "model", uri, save_artifact)
    found = select(model, uri, "label", 8).sample.labels
    assert found == [25, 75, 125, 175, 225, 275, 325, 375]
    assert select(model, uri, "label", 8).sample.labels == found


def test_changed_data_is_reported(tmp_path: Path, save_artifact: Callable[..., str]) -> None:
    uri = write_images(tmp_path / "data", images(400))
    model = trained_on(tmp_path / "model", uri, save_artifact)
    digest = scan(uri)[0].digest
    same = model.model_copy(update={"provenance": {"dataset": {"digest": digest}}})
    other = model.model_copy(update={"provenance": {"dataset": {"digest": "d" * 64}}})
    assert select(same, None, None, 50).notes == ()
    (message,) = select(other, None, None, 50).notes
    assert message.startswith(f"The data has changed since training (digest {digest[:12]}, was ddd")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"uri": "in memory"},
            "trained on rows in memory, which were not kept; pass rows with --rows",
        ),
        (
            {"uri": "/nowhere/x"},
            "the training rows are no longer available: /nowhere/x: no such file",
        ),
        (
            {"holdout": 0.0},
            "training held out no rows (data.holdout: 0); pass rows with --rows URI",
        ),
        ({"holdout": 1e-9}, "found 0 rows, a report needs at least 4; pass others with --rows URI"),
    ],
)
def test_unavailable_rows_are_an_error_that_suggests_rows(
    tmp_path: Path, save_artifact: Callable[..., str], data: dict[str, Any], message: str
) -> None:
    uri = write_images(tmp_path / "data", images(80))
    model = trained_on(tmp_path / "model", data.pop("uri", uri), save_artifact, **data)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        select(model, None, None, 100)
    assert "--rows" in str(caught.value)


def test_a_label_must_be_there_and_be_one_value(
    tmp_path: Path, save_artifact: Callable[..., str]
) -> None:
    uri = write_images(tmp_path / "data", images(80), label=[1] * 80)
    model = trained_on(tmp_path / "model", uri, save_artifact)
    with pytest.raises(DataError, match="no column 'labl', did you mean 'label'"):
        select(model, uri, "labl", 100)
    with pytest.raises(DataError, match="column 'image' is .*, a label must be one value per row"):
        select(model, uri, "image", 100)


# -- sections ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag's attributes, every text outside scripts, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A denoising, sparse model of 6 x 6 pictures, and labelled rows with hostile labels."""
    folder = tmp_path_factory.mktemp("pictured")
    made = images()
    model = fitted(
        folder / "model", made, widths=[10, 4], code_activation="sigmoid",
        scaling={"kind": "divide", "by": 255}, corruption={"kind": "zeros", "p": 0.2},
        penalties=[{"kind": "sparsity_kl", "rho": 0.25, "beta": 0.1}],
    )  # fmt: skip
    labels = [HOSTILE if i % 2 else "fine" for i in range(len(made))]
    return model, write_images(folder / "rows", made, **{HOSTILE: labels})


def test_a_model_of_pictures_has_every_section(
    pictured: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    model, uri = pictured
    out = tmp_path / "page.html"
    done = report(model, settings, rows=uri, label=HOSTILE, out=str(out))
    html = out.read_text()
    assert list(done.sections) == EVERY
    assert (done.rows, done.run_id) == (240, None)
    read = Page(html)
    for caption in ("original", "noisy", "denoised", "clean", "highest scores"):
        assert caption in read.text
    assert "target rho 0.25" in html
    assert "Schein, Saul and Ungar 2003" in read.text
    assert "fitted on every second row and evaluated on the others" in read.text
    assert artifact.load(model).digest in read.text
    assert html.count("plotly.js v") == 1


def test_negative_control_without_escaping_hostile_labels_are_markup(
    pictured: tuple[str, str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the next two tests."""
    monkeypatch.setattr(page, "escape", str)
    monkeypatch.setattr(codes, "text", str)
    model, uri = pictured
    report(model, settings, rows=uri, label=HOSTILE, out=str(tmp_path / "page.html"))
    read = Page((tmp_path / "page.html").read_text())
    assert ("a", {"href": "http://evil.example/x"}) in read.tags
    made = codes.scatters(np.zeros((1, 2)), np.zeros((1, 2)), "ab", ("xy", "xy"), [HOSTILE])
    assert made.data[0].name == HOSTILE


def test_the_page_makes_no_requests_and_escapes_hostile_labels(
    pictured: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    model, uri = pictured
    out = tmp_path / "page.html"
    report(model, settings, rows=uri, label=HOSTILE, out=str(out))
    html = out.read_text()
    read = Page(html)
    assert HOSTILE in read.text  # as text of the page: the column's name and the worst rows' labels
    assert HOSTILE not in html
    assert "evil.example" not in " ".join(
        str(value) for _, tag in read.tags for value in tag.values()
    )
    loaded = [
        value for _, attributes in read.tags for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]  # fmt: skip
    assert loaded
    assert all(str(value).startswith(("#", "data:image/png;base64,")) for value in loaded)
    own = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.S)
    assert not any("<script>alert" in script or 'href="http://evil' in script for script in own)
    assert html.count('"showSendToCloud": false') == html.count('class="plotly-graph-div"') > 5
    policy = next(tag["content"] for name, tag in read.tags if name == "meta" and "content" in tag)
    assert str(policy).startswith("default-src 'none'")


def test_plotly_shows_labels_and_never_reads_them_as_markup() -> None:
    made = codes.scatters(np.zeros((2, 2)), np.zeros((2, 2)), ("a", "b"), (("x", "y"),) * 2,
                         [HOSTILE, "fine"])  # fmt: skip
    names = {trace.name for trace in made.data}
    assert not any("<" in name for name in names)
    assert "fine" in names


def test_many_numbers_are_a_scale_and_rare_words_share_a_colour() -> None:
    points = np.zeros((60, 3))
    scale = codes.scatters(points, points, ("a", "b"), (("x", "y", "z"),) * 2, list(range(60)))
    assert [type(trace).__name__ for trace in scale.data] == ["Scatter3d"] * 2
    assert scale.data[0].marker.showscale
    words = [f"w{i:02}" for i in range(60)]
    named = codes.scatters(points[:, :2], points[:, :2], ("a", "b"), (("x", "y"),) * 2, words)
    assert len(named.data) == 2 * (len(codes.PALETTE) + 1)
    assert named.data[len(codes.PALETTE)].name == "all others"


def test_a_model_of_columns_has_no_pictures(settings: Settings, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    made = pandas.DataFrame(RNG.normal(size=(200, 36)), columns=[f"c{i}" for i in range(36)])
    Autoencoder(widths=[3], epochs=2, random_state=0).fit(made).save(str(tmp_path / "model"))
    made.to_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "page.html"
    done = report(str(tmp_path / "model"), settings, rows=str(tmp_path / "rows.parquet"),
                  out=str(out))  # fmt: skip
    gone = {"Reconstructions", "Interpolations", "Traversals", "First-layer weights"}
    assert list(done.sections) == [title for title in EVERY if title not in gone]
    html = out.read_text()
    assert "scatter3d" in html
    assert "target rho" not in html
    assert "PCA beats the model: the model's error is" in Page(html).text  # noise, after two epochs
    assert "logistic PCA" not in html


def test_the_members_of_an_ensemble_and_their_agreement_are_reported(
    settings: Settings, tmp_path: Path
) -> None:
    made = images(120)
    model = fitted(tmp_path / "model", made, widths=[3], seeds=3, combine="max")
    out = tmp_path / "page.html"
    done = report(model, settings, rows=write_images(tmp_path / "rows", made), out=str(out))
    assert list(done.sections)[:3] == ["Model", "Loss", "Members"]
    manifest = artifact.load(model).manifest
    read = Page(out.read_text()).text
    lead = manifest.ensemble.primary
    assert (
        "The score of a row is the maximum over 3 models that differ only in their seed. Codes, "
        f"hashes and reconstructions in this report are those of the primary member {lead}, which "
        "has the lowest error. The mean Spearman correlation between the members' scores of the "
        f"held-out rows is {manifest.metrics['rank_agreement']:.3f}; if it is low, the ranking of a "
        "single model depends on its seed."
    ) in read
    assert f"{lead} (primary)" in read
    for number in (1, 2, 3):
        records = [r for r in manifest.provenance["history"] if r["member"] == number]
        assert f"{min(record['holdout_mse'] for record in records):.6g}" in read
        assert f"{records[-1]['train_mse']:.6g}" in read


def test_an_artifact_without_history_has_no_loss_curves(
    tmp_path: Path, settings: Settings, save_artifact: Callable[..., str]
) -> None:
    """Untrained, and convolutional: there are no first-layer weights of whole pictures either."""
    made = images(80)
    model = {"network": {"kind": "conv", "shape": [6, 6, 1], "layers": [{"channels": 2, "pool": 2}],
                         "code": 5}}  # fmt: skip
    save_artifact(tmp_path / "model", of=made, model=model)
    done = report(str(tmp_path / "model"), settings, rows=write_images(tmp_path / "rows", made),
                  out=str(tmp_path / "page.html"))  # fmt: skip
    gone = {"Loss", "First-layer weights"}
    assert list(done.sections) == [title for title in EVERY if title not in gone]
    assert "denoised" not in (tmp_path / "page.html").read_text()


def test_by_default_baselines_are_evaluated_on_held_out_rows(
    tmp_path: Path, settings: Settings
) -> None:
    """The numbers on the page against singular vectors, and the model's scores, of the same rows."""
    made = images(400)
    uri = write_images(tmp_path / "data", made)
    fitted(tmp_path / "memory", made, widths=[3], scaling={"kind": "divide", "by": 255})
    loaded = artifact.load(str(tmp_path / "memory"))
    golden = (tmp_path / "memory" / artifact.REFERENCE).read_bytes()
    manifest = loaded.manifest
    artifact.save(
        str(tmp_path / "model"), module=loaded.module, features=manifest.features,
        calibration=manifest.calibration, name="model", metrics=manifest.metrics,
        reference_rows=artifact.parse_tensors("golden", golden)["rows"],
        job={"data": {"uri": uri, "holdout": 0.25}}, provenance=manifest.provenance,
    )  # fmt: skip
    done = report(str(tmp_path / "model"), settings, out=str(tmp_path / "page.html"))
    masks = [order.holdout_mask(f"part-{s}.parquet", g, 0, 100, 0.25)
             for s in range(2) for g in range(2)]  # fmt: skip
    held = np.concatenate(masks)
    train, evaluated = made[~held] / 255, made[held] / 255
    axes = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)[2][:3]
    centred = evaluated - train.mean(axis=0)
    pca = np.square(centred - centred @ axes.T @ axes).mean()
    ours = hourglass.load(str(tmp_path / "model")).anomaly(made[held]).mean()
    text = Page((tmp_path / "page.html").read_text()).text
    assert done.rows == held.sum()
    assert f"this model3{ours:.6g}" in text
    assert f"PCA3{pca:.5g}"[:9] in text
    assert f"fitted on {int((~held).sum())} training rows and evaluated on the held-out" in text


@pytest.mark.parametrize("units", [1, 2, 40])
def test_codes_of_any_width_are_drawn(
    tmp_path: Path, settings: Settings, units: int, save_artifact: Callable[..., str]
) -> None:
    made = images(60)
    save_artifact(tmp_path / "model", of=made, model={"network": {"widths": [units]}})
    out = tmp_path / "page.html"
    report(str(tmp_path / "model"), settings, rows=write_images(tmp_path / "rows", made),
           out=str(out))  # fmt: skip
    titles = {1: "the code and the score", 2: "the 2 code units", 40: "PCA of the 40 code units"}
    html = out.read_text()
    assert titles[units] in html
    assert ("so a comparison with PCA is meaningless" in html) == (units == 40)


def test_sparse_codes_are_drawn_without_their_zeros(
    tmp_path: Path, settings: Settings, save_artifact: Callable[..., str]
) -> None:
    """One of twelve units answers for each row; those that never do are dead."""
    made = images(80)
    model = {"network": {"widths": [12]}, "code": {"kind": "top_k", "k": 1}}
    save_artifact(tmp_path / "model", of=made, model=model)
    out, uri = tmp_path / "page.html", write_images(tmp_path / "rows", made)
    report(str(tmp_path / "model"), settings, rows=uri, out=str(out))
    code = hourglass.load(str(tmp_path / "model")).encode(made)
    never = int((code == 0).all(axis=0).sum())
    text = Page(out.read_text()).text
    assert never > 0
    assert (
        f"{never} of 12 units are dead, that is, constant over the rows ({never} of them 0)" in text
    )
    assert "91.7% of all activations are 0 and not drawn." in text


# -- shorter codes ----------------------------------------------------------------------------


@pytest.fixture
def evaluated_model(tmp_path: Path, save_artifact: Callable[..., str]) -> Callable[..., Context]:
    """`evaluated_model(of=..., model=...)`: an untrained model and its answers for all rows."""

    def made(of: np.ndarray, **model: Any) -> Context:
        save_artifact(tmp_path / "model", of=of, model=model)
        predictor = hourglass.load(str(tmp_path / "model"))
        selection = select(
            predictor.artifact.manifest, write_images(tmp_path / "rows", of), None, 5000
        )
        return evaluate(predictor, None, "d" * 64, selection, None)

    return made


NESTED = {"penalties": [{"kind": "nested", "widths": [2, 5]}]}


def test_errors_of_shorter_codes_against_numpy(evaluated_model: Callable[..., Context]) -> None:
    """Codes cut short, decoded, scaled; PCA of the same rows from their singular vectors."""
    made = images(80)
    found = evaluated_model(made, network={"widths": [8]}, **NESTED)
    section = evaluation.shorter_codes(found)
    assert section is not None
    chart, words = section.parts
    ours, pca = ([*trace.y] for trace in chart.data)
    low, high = made.min(axis=0), made.max(axis=0)
    space = (made.astype(np.float64) - low) / (high - low)
    fitted, evaluated = space[::2], space[1::2]
    axes = np.linalg.svd(fitted - fitted.mean(axis=0))[2]
    code = found.predictor.encode(made[1::2])
    assert [*chart.data[0].x] == [2, 5, 8]
    for index, width in enumerate((2, 5, 8)):
        back = found.predictor.decode(np.where(np.arange(8) < width, code, 0))
        ratio = (back.astype(np.float64) - made[1::2]) / (high - low)
        assert ours[index] == pytest.approx(np.square(ratio).mean(), rel=1e-4)
        rest = (evaluated - fitted.mean(axis=0)) @ axes[width:].T
        assert pca[index] == pytest.approx(np.square(rest).sum() / evaluated.size, rel=1e-4)
        cells = "</td><td>".join(
            [str(width), f"{ours[index]:.6g}", str(width), f"{pca[index]:.6g}"]
        )
        assert cells in words
    assert ours[2] == pytest.approx(found.scores.score[1::2].mean(), rel=1e-6)
    assert "PCA beats the model at every width." in section.text
    assert "and evaluated on the others." in section.text


def test_without_nested_codes_there_is_no_curve(evaluated_model: Callable[..., Context]) -> None:
    assert evaluation.shorter_codes(evaluated_model(images(40), network={"widths": [8]})) is None


def test_widths_that_store_the_whole_row_are_not_compared(
    evaluated_model: Callable[..., Context],
) -> None:
    section = evaluation.shorter_codes(
        evaluated_model(images(80), network={"widths": [40]}, **NESTED)
    )
    assert section is not None
    assert [*section.parts[0].data[0].x] == [2, 5]


def test_a_trained_nested_model_has_the_curve_on_its_page(
    settings: Settings, tmp_path: Path
) -> None:
    made = images()
    nested = [{"kind": "nested", "widths": [1, 2]}]
    model = fitted(tmp_path / "model", made, widths=[3], penalties=nested)
    out, uri = tmp_path / "page.html", write_images(tmp_path / "rows", made)
    done = report(model, settings, rows=uri, out=str(out))
    at = EVERY.index("Reconstructions")
    assert list(done.sections) == [*EVERY[:at], "Shorter codes", *EVERY[at:]]
    html = out.read_text()
    assert "units of the code, log axis" in html
    held = re.findall("<th>(holdout_mse\\w*)</th>", html)
    assert held == ["holdout_mse", "holdout_mse_at_1", "holdout_mse_at_2"]


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ((0.1, 0.1), "The model beats PCA at every width."),
        ((0.3, 0.3), "PCA beats the model at every width."),
        ((0.3, 0.2), "The model beats PCA at 9 units; PCA is better at the other widths."),
    ],
)
def test_the_comparison_of_widths(ours: tuple[float, float], message: str) -> None:
    assert evaluation._comparison_at((4, 9), ours, (0.2, 0.2)) == message


def test_a_log_axis_has_ticks_whatever_its_length() -> None:
    """Of a short one plotly finds them: 1, 2 and 5 may all lie outside of it."""
    made = charts.widths(range(1, 40), {"PCA": [0.03 + 0.0001 * i for i in range(39)]})
    assert made.layout.yaxis.tickvals is None
    assert made.layout.xaxis.tickvals[:4] == (1, 2, 5, 10)
    assert charts.widths((3, 7), {"PCA": [1.0, 1e-3]}).layout.xaxis.tickvals == (3, 7)
    assert 0.002 in charts.widths((3, 7), {"PCA": [1.0, 1e-3]}).layout.yaxis.tickvals


# -- rows made from codes ---------------------------------------------------------------------


def sheet(found: Context, made: np.ndarray, like: np.ndarray, across: int) -> bytes:
    """What a strip shows."""
    shape = pictures.shape_of(found.model)
    assert shape is not None
    shades = pictures.shades(shape.of(made), float(like.min()), float(like.max()))
    return pictures.sheet(shades, across)


def drawn(part: str) -> bytes:
    (data,) = re.findall('base64,([^"]*)', part)
    return base64.b64decode(data)


POSTERIOR = {
    "network": {"widths": [5]}, "code": {"kind": "gaussian_posterior"},
    "penalties": [{"kind": "kl_prior", "beta": 0.01}],
}  # fmt: skip
ADVERSARY = {"network": {"widths": [5], "code_activation": "linear"}, "adversary": {}}


@pytest.mark.parametrize("model", [POSTERIOR, ADVERSARY])
def test_draws_from_the_prior_are_pictures(
    evaluated_model: Callable[..., Context], model: dict[str, Any]
) -> None:
    made = images(48)
    found = evaluated_model(made, **model)
    section = pictures.draws(found)
    assert section is not None
    new = generate.prior(found.predictor, 48, seed=0)
    like = made[np.linspace(0, 47, 12).round().astype(int)]
    assert drawn(section.parts[0]) == sheet(found, new, like, 12)
    assert "<figcaption>48 draws, seed 0</figcaption>" in section.parts[0]


def test_a_model_without_a_prior_shows_no_draws(evaluated_model: Callable[..., Context]) -> None:
    assert pictures.draws(evaluated_model(images(48), network={"widths": [5]})) is None


def test_interpolations_go_from_row_to_row(evaluated_model: Callable[..., Context]) -> None:
    made = images(8)
    found = evaluated_model(made, network={"widths": [5]})
    section = pictures.interpolations(found)
    assert section is not None
    steps = [generate.interpolate(found.predictor, made[i], made[i + 1], 9) for i in (0, 2, 4, 6)]
    lines = [np.vstack([made[2 * i], way, made[2 * i + 1]]) for i, way in enumerate(steps)]
    assert drawn(section.parts[0]) == sheet(found, np.concatenate(lines), made, 11)


def test_four_rows_are_two_interpolations(evaluated_model: Callable[..., Context]) -> None:
    found = evaluated_model(images(4), network={"widths": [5]})
    section = pictures.interpolations(found)
    assert section is not None
    high = int.from_bytes(drawn(section.parts[0])[20:24], "big")
    assert high == 2 * 6 + pictures.GAP


def test_the_units_that_vary_most_are_traversed_over_their_range(
    evaluated_model: Callable[..., Context],
) -> None:
    made = images(200)
    found = evaluated_model(made, network={"widths": [10]})
    section = pictures.traversals(found)
    assert section is not None
    code = found.scores.code
    units = np.argsort(-code.std(axis=0))[:8].tolist()
    captions = [re.findall("<figcaption>(.*)</figcaption>", part)[0] for part in section.parts]
    low, high = np.quantile(code, [0.00135, 0.99865], axis=0)
    assert captions == [f"unit {u + 1}, {low[u]:.3g} to {high[u]:.3g}" for u in units]
    assert "Shown: 8 of 10 units, those that vary most." in section.text
    assert "(0.14% excluded at either end)" in section.text
    way = np.repeat(code[:1], 9, axis=0)
    way[:, units[0]] = np.linspace(low[units[0]], high[units[0]], 9)
    line = np.vstack([made[:1], found.predictor.decode(way)])
    assert drawn(section.parts[0]) == sheet(found, line, made[:1], 10)


def test_constant_units_are_not_traversed(evaluated_model: Callable[..., Context]) -> None:
    """One of twelve units answers for each row: those that never do are left out."""
    found = evaluated_model(images(80), network={"widths": [12]}, code={"kind": "top_k", "k": 1})
    alive = int(found.scores.code.any(axis=0).sum())
    section = pictures.traversals(found)
    assert section is not None
    assert 0 < alive == len(section.parts) < 8
    still = np.zeros_like(found.scores.code)
    none = dataclasses.replace(found, scores=dataclasses.replace(found.scores, code=still))
    assert pictures.traversals(none) is None


def test_a_model_with_a_prior_shows_its_draws_above_the_interpolations(
    settings: Settings, tmp_path: Path, save_artifact: Callable[..., str]
) -> None:
    made = images(60)
    save_artifact(tmp_path / "model", of=made, model=POSTERIOR)
    uri = write_images(tmp_path / "rows", made)
    done = report(str(tmp_path / "model"), settings, rows=uri, out=str(tmp_path / "page.html"))
    at = done.sections.index("Draws from the prior")
    assert done.sections[at - 1 : at + 2] == (
        "Reconstructions",
        "Draws from the prior",
        "Interpolations",
    )


def test_tables_and_notes_escape() -> None:
    made = page.table(("<b>",), [("<i>", "&")]) + page.note("<u>") + page.image(b"", '">', 1)
    assert not set(re.findall(r"<(\w+)", made)) & {"b", "i", "u"}
    assert 'alt="&quot;&gt;"' in made


# -- command line and registry ----------------------------------------------------------------


def test_the_command_writes_the_page(
    pictured: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    model, uri = pictured
    out = str(tmp_path / "page.html")
    asked = ["report", model, "--rows", uri, "--max-rows", "50", "--out", out]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0
    assert done.stdout == (
        f"rows         50\nsections     {', '.join(EVERY)}\npage         {out}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["/nowhere"], RegistryError, "/nowhere: no artifact there"),
        (["models:/none@champion"], RegistryError, "no model is registered in"),
        (["MODEL"], DataError, "rows in memory, which were not kept; pass rows with --rows URI"),
        (["MODEL", "--rows", "/nowhere"], DataError, "/nowhere: no such file or folder"),
    ],
)
def test_errors_of_the_command(
    pictured: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    given = [pictured[0] if word == "MODEL" else word for word in arguments]
    done = CliRunner().invoke(cli.app, ["report", *given])
    assert isinstance(done.exception, error)
    assert message in str(done.exception)
    assert not (tmp_path / "report.html").exists()


def test_max_rows_has_a_minimum() -> None:
    done = CliRunner().invoke(cli.app, ["report", "x", "--max-rows", "3"])
    assert done.exit_code == 2


def test_a_registered_models_page_goes_to_its_run(
    pictured: tuple[str, str], settings: Settings, tmp_path: Path
) -> None:
    model, uri = pictured
    job = files.parse(
        {
            "kind": "train",
            "name": "reported",
            "data": {"uri": uri, "features": {"vector": "image"}},
            "model": {"network": {"widths": [4]}},
            "track": {"experiment": "reported", "register": "reported"},
        }
    )
    assert isinstance(job, TrainJob)
    run = tracking.start(settings, job, {"name": "reported", "uri": uri, "digest": "d" * 64})
    finished = run.finish("finished", model)
    out = tmp_path / "page.html"
    done = report("models:/reported@challenger", settings, rows=uri, out=str(out))
    assert done.run_id == finished.run_id
    client = store.client(settings)
    assert "report.html" in [file.path for file in client.list_artifacts(finished.run_id)]
    logged = Path(client.download_artifacts(finished.run_id, "report.html", str(tmp_path)))
    assert logged.read_text() == out.read_text()
    assert "<h1>reported 1</h1>" in out.read_text()
