"""The picture of a network: parameters against the module, the SVG as a reader sees it, the command.

Counts are taken from modules with real weights, and by hand where a number is written out.
"""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from hourglass import Autoencoder, artifact, cli, storage
from hourglass.config.files import load_kind
from hourglass.config.train import TrainJob
from hourglass.errors import ArtifactError, RegistryError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import Preprocessing
from hourglass.model.spec import ModelSpec
from hourglass.report import drawing, network
from hourglass.report.network import aside, layers, outline, pretraining, summary
from hourglass.settings import Settings

ROOT = Path(__file__).parents[2]
TRAIN = sorted(ROOT.glob("jobs/*/train.yaml"))
WIDTHS = {"digits": 64, "lorenz": 72, "satellite": 36}
"""Features of the shipped jobs whose network is dense; MNIST has 784."""
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """</text><script>alert(1)</script>&"'<image href="http://evil.example/x"/>"""
KL = [{"kind": "kl_prior", "beta": 0.01}]


def module_of(features: int, net: dict[str, Any], **parts: Any) -> AutoencoderModule:
    """A module with real weights."""
    spec = ModelSpec.model_validate({"network": net, **parts})
    return AutoencoderModule(spec, Preprocessing(features, features), unit_data=False)


def drawn(features: int, net: dict[str, Any], **parts: Any) -> list[drawing.Layer]:
    """The layers of the module without weights, as the command draws them."""
    spec = ModelSpec.model_validate({"network": net, **parts})
    return layers(outline(spec, features, unit_data=False))


def counts(made: list[drawing.Layer]) -> list[list[int]]:
    return [[link.parameters for link in layer.links] for layer in made[1:]]


def own(*parts: nn.Module | None) -> int:
    return sum(weight.numel() for part in parts if part is not None for weight in part.parameters())


# -- parameters -------------------------------------------------------------------------------

CONV = {
    "kind": "conv", "shape": [9, 8, 3],
    "layers": [{"channels": 4, "kernel": 3, "stride": 2}, {"channels": 5, "kernel": 3, "pool": 2}],
}  # fmt: skip
SIGNAL = {
    "kind": "conv",
    "shape": [2, 24],
    "channels": "first",
    "layers": [{"channels": 3, "kernel": 5}],
}
LSTM = {"kind": "lstm", "shape": [10, 3], "hidden": 8, "layers": 2, "code": 4}
DENSE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"widths": [7, 3]}, {}),
    ({"widths": [4]}, {}),
    ({"widths": [7, 5, 3], "tied": True}, {}),
    ({"widths": [7, 5, 3], "tied": True, "norm": "layer", "dropout": 0.1}, {}),
    ({"widths": [7, 3], "decoder": [11, 9, 6], "norm": "batch"}, {}),
    ({"widths": [7, 3], "decoder": []}, {}),
    ({"widths": [7, 3]}, {"code": {"kind": "gaussian_posterior"}, "penalties": KL}),
]
CONVS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (CONV | {"up": up} | code, {}) for up in ("nearest", "transposed") for code in ({}, {"code": 6})
] + [
    (CONV | code, {"code": {"kind": "gaussian_posterior"}, "penalties": KL})
    for code in ({}, {"code": 6})
] + [(SIGNAL, {})]  # fmt: skip
LSTMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LSTM, {}), (LSTM | {"predict": 3}, {}), (LSTM | {"layers": 1, "predict": 1}, {})
]  # fmt: skip


def features_of(net: dict[str, Any]) -> int:
    return math.prod(net.get("shape", [12]))


@pytest.mark.parametrize(("net", "parts"), DENSE)
def test_each_dense_connection_has_the_modules_parameters(
    net: dict[str, Any], parts: dict[str, Any]
) -> None:
    real: Any = module_of(12, net, **parts).network
    norms = ([*real.encoder_norms, None], [*real.decoder_norms, None])
    steps = [*zip(real.encoder, norms[0], strict=True), *zip(real.decoder, norms[1], strict=True)]
    made = drawn(12, net, **parts)
    assert counts(made) == [[own(*pair)] for pair in steps]
    tied = [link.tied for layer in made for link in layer.links]
    half = len(real.encoder)
    assert tied == [False] * half + [bool(net.get("tied"))] * (len(tied) - half)


@pytest.mark.parametrize(("net", "parts"), CONVS)
def test_each_convolution_has_the_modules_parameters(
    net: dict[str, Any], parts: dict[str, Any]
) -> None:
    real: Any = module_of(features_of(net), net, **parts).network
    code = [real.to_code, real.from_code] if "code" in net else []
    steps = [*real.encoder, *code, *real.decoder]
    assert counts(drawn(features_of(net), net, **parts)) == [[own(step)] for step in steps]


@pytest.mark.parametrize(("net", "parts"), LSTMS)
def test_each_lstm_connection_has_the_modules_parameters(
    net: dict[str, Any], parts: dict[str, Any]
) -> None:
    """Against single-layer LSTMs of the same sizes."""
    real: Any = module_of(30, net, **parts).network
    ways = [way for way in (real.backwards, real.forwards) if way is not None]
    deeper = [own(nn.LSTM(8, 8))] * (net["layers"] - 1)
    want = [[own(nn.LSTM(3, 8))], *([count] for count in deeper), [own(real.to_code)]]
    want += [[own(nn.LSTM(4, 8))] * len(ways), *([count] * len(ways) for count in deeper)]
    assert counts(drawn(30, net, **parts)) == [*want, [own(way.values) for way in ways]]
    assert len(ways) == 1 + ("predict" in net)


@pytest.mark.parametrize(("net", "parts"), DENSE + CONVS + LSTMS)
def test_connections_sum_to_the_total(net: dict[str, Any], parts: dict[str, Any]) -> None:
    """No parameter is left out and none counted twice; the line says the same total."""
    real = module_of(features_of(net), net, **parts)
    total = own(real)
    assert sum(map(sum, counts(drawn(features_of(net), net, **parts)))) == total
    assert summary(real).endswith(f", {total:,} parameters")
    assert summary(outline(real.spec, features_of(net), unit_data=False)) == summary(real)


def test_a_weight_of_no_connection_breaks_the_sum() -> None:
    """Negative control of the sum."""
    real = module_of(12, {"widths": [4]})
    real.network.spare = nn.Linear(2, 2)
    assert sum(map(sum, counts(layers(real)))) == own(real) - 6


def test_numbers_by_hand() -> None:
    assert counts(drawn(784, {"widths": [100]})) == [[78_500], [79_184]]
    assert counts(drawn(784, {"widths": [100], "tied": True})) == [[78_500], [784]]
    assert counts(drawn(12, {"widths": [7, 3]}, code={"kind": "gaussian_posterior"}, penalties=KL)) == [
        [12 * 7 + 7], [7 * 6 + 6], [3 * 7 + 7], [7 * 12 + 12]
    ]  # fmt: skip


def test_no_memory_for_weights() -> None:
    made = outline(ModelSpec.model_validate({"network": {"widths": [2**28]}}), 2**28, False)
    assert own(made) == 2 * 2**56 + 2 * 2**28
    assert {weight.device.type for weight in made.parameters()} == {"meta"}


# -- sizes and words --------------------------------------------------------------------------


def sizes(made: list[drawing.Layer]) -> list[tuple[str, str]]:
    return [(layer.role, layer.size) for layer in made]


def test_sizes_of_a_dense_network() -> None:
    made = drawn(1200, {"widths": [7, 3], "decoder": [11]})
    assert sizes(made) == [
        ("row", "1,200"), ("hidden", "7"), ("code", "3"), ("hidden", "11"), ("output", "1,200")
    ]  # fmt: skip
    assert [layer.units for layer in made] == [1200, 7, 3, 11, 1200]


@pytest.mark.parametrize("up", ["nearest", "transposed"])
@pytest.mark.parametrize("code", [None, 6])
def test_sizes_of_a_conv_network_are_those_that_flow(up: str, code: int | None) -> None:
    """Against the shapes that the real module's own layers see."""
    net = CONV | {"up": up, "code": code}
    real = module_of(216, net)
    seen: list[tuple[int, ...]] = []
    inner: Any = real.network
    for step in (*inner.encoder, *inner.decoder):
        step.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    inner.decode(inner.encode(torch.zeros(1, 216)))
    first, second, third, fourth = (" x ".join(map(str, shape)) for shape in seen)
    assert (first, second) == ("4 x 5 x 4", "5 x 5 x 4")  # the second before its pooling
    middle = [("hidden", "5 x 2 x 2"), ("code", "6"), ("hidden", "5 x 2 x 2")]
    between = middle if code else [("code", "5 x 2 x 2")]
    made = drawn(216, net)
    assert sizes(made) == [
        ("row", "3 x 9 x 8"), ("hidden", first), *between, ("hidden", "4 x 5 x 4"), ("output", "3 x 9 x 8")
    ]  # fmt: skip
    if up == "nearest":
        assert (third, fourth) == ("4 x 5 x 4", "3 x 9 x 8")
    kinds = {"nearest": ("copies to 9 x 8", "conv 3 x 3"),
             "transposed": ("transposed", "conv 3 x 3", "stride 2")}  # fmt: skip
    assert made[-1].links[0].kind == kinds[up]
    assert made[1].links[0].kind == ("conv 3 x 3", "stride 2")
    assert made[2].links[0].kind == ("conv 3 x 3", "max-pool 2")


def test_a_signal_has_channels_and_length() -> None:
    made = drawn(48, SIGNAL)
    assert sizes(made) == [("row", "2 x 24"), ("code", "3 x 24"), ("output", "2 x 24")]
    assert [layer.links[0].kind for layer in made[1:]] == [("conv 5",), ("conv 5",)]


def test_an_lstm_has_steps_and_values_and_two_ways_back() -> None:
    made = drawn(30, LSTM | {"layers": 1, "predict": 3})
    assert sizes(made) == [
        ("row", "10 x 3"), ("hidden", "7 x 8"), ("code", "4"), ("hidden", "10 x 8"), ("output", "10 x 3")
    ]  # fmt: skip
    assert [[link.kind for link in layer.links] for layer in made[1:]] == [
        [("LSTM", "reads 7 of 10 steps")],
        [("dense", "last step only")],
        [("LSTM, 7 steps, back",), ("LSTM, 3 steps ahead",)],
        [("dense, 7 steps, back",), ("dense, 3 steps ahead",)],
    ]


def test_activations_and_the_codes_kind() -> None:
    made = drawn(
        12,
        {
            "widths": [7, 5, 3],
            "activation": ["relu", "gelu", "tanh"],
            "output_activation": "sigmoid",
        },
        code={"kind": "top_k", "k": 2},
    )
    assert [layer.notes for layer in made] == [
        (), ("relu",), ("gelu",), ("tanh", "top_k", "k 2"), ("gelu",), ("relu",), ("sigmoid",)
    ]  # fmt: skip
    assert [layer.name for layer in made] == [
        "row", "encoder 1", "encoder 2", "code", "decoder 1", "decoder 2", "output"
    ]  # fmt: skip


def test_a_posterior_says_what_the_encoder_ends_in() -> None:
    made = drawn(12, {"widths": [7, 3]}, code={"kind": "gaussian_posterior"}, penalties=KL)
    assert made[2].notes == ("linear", "gaussian_posterior")
    assert made[2].links[0].kind == ("dense", "to 6 units")


def test_norm_and_dropout_are_named_where_they_act() -> None:
    made = drawn(12, {"widths": [7, 3], "norm": "layer", "dropout": 0.25})
    hidden = ("dense", "layer norm", "dropout 0.25")
    assert [layer.links[0].kind for layer in made[1:]] == [hidden, ("dense",), hidden, ("dense",)]


def test_parts_at_the_side() -> None:
    spec = ModelSpec.model_validate(
        {
            "network": {"widths": [3], "activation": "sigmoid"},
            "corruption": {"kind": "gaussian", "sd": 0.2},
            "loss": {"kind": "huber"},
            "penalties": [
                {"kind": "sparsity_kl", "rho": 0.05, "beta": 3.0},
                {"kind": "weights_l2", "weight": 0.1},
            ],
        }
    )
    assert aside(spec) == [
        ("corruption", "gaussian, sd: 0.2"),
        ("loss", "huber, delta: 1.0"),
        ("penalty", "sparsity_kl, rho: 0.05, beta: 3.0"),
        ("penalty", "weights_l2, weight: 0.1"),
    ]


def test_an_adversary_stands_at_the_side_with_its_prior() -> None:
    net = {"widths": [3], "code_activation": "linear"}
    prior = {"kind": "gaussian", "sd": 2.0}
    spec = ModelSpec.model_validate({"network": net, "adversary": {"prior": prior}})
    (words,) = [text for name, text in aside(spec) if name == "adversary"]
    assert words.startswith("prior: (gaussian, sd: 2.0), weight: 0.01, widths: [64, 64]")
    without = ModelSpec.model_validate({"network": net})
    assert [name for name, _ in aside(without)] == ["corruption", "loss"]


def test_a_phase_names_each_layer_and_its_mirror_from_the_row_inwards() -> None:
    rbm = {"kind": "rbm", "epochs": 2}
    made = drawn(12, {"widths": [7, 5, 3]})
    assert pretraining([rbm, {"kind": "greedy", "epochs": 1, "lr": 0.01}], made) == [
        (
            "phase 1",
            "rbm, epochs: 2; pretrains encoder 1 with output, then encoder 2 with decoder 2, then "
            "code with decoder 1",
        ),
        (
            "phase 2",
            "greedy, epochs: 1, lr: 0.01; pretrains encoder 1 with output, then encoder 2 with "
            "decoder 2, then code with decoder 1",
        ),
    ]
    assert pretraining([rbm], drawn(12, {"widths": [3]})) == [
        ("phase 1", "rbm, epochs: 2; pretrains code with output")
    ]
    assert pretraining([], made) == []


@pytest.mark.parametrize(
    ("net", "line"),
    [
        ({"widths": [100]}, "dense 784-[100]-784, 157,684 parameters"),
        ({"widths": [9, 2], "decoder": [5]}, "dense 784-9-[2]-5-784, 11,804 parameters"),
        (
            {"kind": "conv", "shape": [28, 28, 1], "layers": [{"channels": 2}]},
            "conv, 1,568 code units, 39 parameters",
        ),
    ],
)
def test_the_line(net: dict[str, Any], line: str) -> None:
    assert summary(module_of(784, net)) == line


# -- the picture ------------------------------------------------------------------------------


def picture(made: list[drawing.Layer], heading: str = "h", side: Any = ()) -> ET.Element:
    return ET.fromstring(drawing.draw(heading, "line", made, side))


def groups(root: ET.Element, role: str) -> list[ET.Element]:
    return [group for group in root.iter(f"{SVG}g") if group.get("class") == role]


def words(element: ET.Element) -> list[str]:
    return [text.text or "" for text in element.iter(f"{SVG}text")]


def test_every_block_and_connection_is_drawn_with_its_words() -> None:
    made = drawn(784, {"widths": [256, 16], "tied": True, "activation": "relu"})
    root = picture(made, "mnist", [("loss", "mse")])
    assert [words(group) for group in groups(root, "link")] == [
        ["dense", "200,960 parameters"],
        ["dense", "4,112 parameters"],
        ["dense", "256 parameters", "tied"],
        ["dense", "784 parameters", "tied"],
    ]
    assert [words(group) for group in groups(root, "hidden")] == [
        ["encoder 1", "256", "relu"],
        ["decoder 1", "256", "relu"],
    ]
    assert words(root)[:2] == ["mnist", "line"]
    assert words(root)[-2:] == ["loss", "mse"]


def test_one_parameter_is_not_many() -> None:
    assert drawing.Link(("dense",), 1).lines == ("1 parameter",)
    assert drawing.Link(("dense",), 0, tied=True).lines == ("0 parameters", "tied")


def test_the_code_is_marked() -> None:
    root = picture(drawn(12, {"widths": [7, 3]}, code={"kind": "top_k", "k": 2}))
    (code,) = groups(root, "code")
    assert words(code) == ["code", "3", "tanh", "top_k", "k 2"]
    colour = code.find(f"{SVG}rect").get("fill")  # type: ignore[union-attr]
    others = [group for role in ("row", "hidden", "output") for group in groups(root, role)]
    assert len(others) == 4
    assert colour not in {group.find(f"{SVG}rect").get("fill") for group in others}  # type: ignore[union-attr]


def test_height_grows_with_the_log_of_the_width() -> None:
    highs = [drawing.height(units, 1000) for units in (1, 10, 100, 1000)]
    assert highs[0] == drawing.LOWEST
    assert highs[3] == pytest.approx(drawing.HIGHEST)
    assert np.diff(highs) == pytest.approx([(drawing.HIGHEST - drawing.LOWEST) / 3] * 3)
    assert drawing.height(1, 1) == drawing.LOWEST
    root = picture(drawn(1000, {"widths": [100, 10]}))
    rects = [next(group.iter(f"{SVG}rect")) for group in root.iter(f"{SVG}g")
             if group.get("class") != "link"]  # fmt: skip
    assert len(rects) == 5
    found = [float(rect.get("height", 0)) for rect in rects[:3]]
    assert found == pytest.approx(highs[:0:-1], abs=0.1)


BIG = [
    (DENSE[3], 12),
    (({"widths": [2**20, 2**19, 1, 2**19, 5] * 6}, {}), 2**29),
    (CONVS[3], 216),
    (CONVS[5], 216),
    (LSTMS[1], 30),
    (({"widths": [7, 3]}, {"penalties": [{"kind": "nested", "widths": [1, 2]}, *KL],
                           "code": {"kind": "gaussian_posterior"}}), 12),
]  # fmt: skip


@pytest.mark.parametrize(("model", "features"), BIG)
def test_no_text_runs_into_another_or_over_the_edge(model: Any, features: int) -> None:
    """Boxes of all texts and blocks, by the width a wide font has: 0.62 of its size a letter."""
    net, parts = model
    spec = ModelSpec.model_validate({"network": net, **parts})
    made = layers(outline(spec, features, unit_data=False))
    line = summary(outline(spec, features, unit_data=False))
    root = ET.fromstring(drawing.draw("n" * 200, line, made, aside(spec)))
    wide, high = (float(root.get(side, 0)) for side in ("width", "height"))
    boxes = []
    for text in root.iter(f"{SVG}text"):
        size, x, y = (float(text.get(name, 0)) for name in ("font-size", "x", "y"))
        long = 0.62 * size * len(text.text or "")
        left = x - (long / 2 if text.get("text-anchor") == "middle" else 0)
        boxes.append((left, y - 0.8 * size, left + long, y + 0.2 * size))
    for group in root.iter(f"{SVG}g"):
        for rect in group.iter(f"{SVG}rect"):
            x, y, w, h = (float(rect.get(name, 0)) for name in ("x", "y", "width", "height"))
            boxes.append((x, y, x + w, y + h))
    assert all(min(a, b) >= 0 and c <= wide and d <= high for a, b, c, d in boxes)
    for index, (a, b, c, d) in enumerate(boxes):
        for e, f, g, h in boxes[:index]:
            assert c <= e or g <= a or d <= f or h <= b, (index, (a, b, c, d), (e, f, g, h))


@pytest.mark.parametrize("word", [HOSTILE, "\x00\x1b\ud800\uffff", "]]>", "名前 &amp;"])
def test_words_from_outside_are_only_words(word: str) -> None:
    layer = drawing.Layer(word, 3, word, (word,))
    other = drawing.Layer(word, 3, word, (word,), (drawing.Link((word,), 1),))
    text = drawing.draw(word, word, [layer, other], [(word, word)])
    root = ET.fromstring(text.encode())
    allowed = {"svg", "title", "rect", "g", "line", "polygon", "text"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == allowed
    assert words(root)[0] == re.sub(r"[\x00\x1b\ud800\uffff]", "\ufffd", word)[: drawing.LONGEST]


def test_the_picture_asks_for_nothing() -> None:
    text = drawing.draw(HOSTILE, "line", drawn(12, {"widths": [3]}), [])
    root = ET.fromstring(text)
    names = {name for element in root.iter() for name in element.attrib}
    assert not any(name.startswith("on") or name.endswith(("href", "src")) for name in names)
    assert "url(" not in text
    assert text.count("http") == 1 + 2  # the namespace; the hostile words, twice


def test_a_long_heading_is_cut() -> None:
    made = picture(drawn(12, {"widths": [3]}), "n" * 5000)
    assert words(made)[0] == "n" * 79 + "…"


# -- source to file ---------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"home": tmp_path / "home", "MLFLOW_TRACKING_URI": None})


def job_file(
    folder: Path, net: dict[str, Any] | None = None, uri: str = "/nowhere/rows", **data: Any
) -> str:
    job = {
        "kind": "train",
        "data": {"uri": uri, "features": {"vector": "image"}, **data},
        "model": {"network": net or {"widths": [4]}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(job))
    return str(path)


def write_rows(folder: Path, width: int = 12) -> str:
    folder.mkdir()
    cells = pa.array([[0.5] * width] * 3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"image": cells}), folder / "a.parquet", write_page_checksum=True)
    return str(folder)


def test_features_come_from_the_shards(tmp_path: Path, settings: Settings) -> None:
    out = str(tmp_path / "n.svg")
    file = job_file(tmp_path, uri=write_rows(tmp_path / "rows"))
    done = network.plot(file, settings, out=out)
    assert done == network.Plotted(out, "dense 12-[4]-12, 112 parameters", ())
    assert words(ET.parse(out).getroot())[:2] == ["tiny", done.summary]
    assert network.plot(file, settings, out=out, features=12) == done


def test_phases_are_drawn_from_the_job_and_from_its_artifact(
    tmp_path: Path, settings: Settings
) -> None:
    """Trained from the same parts, the artifact has the same words; without phases there are none."""
    out = str(tmp_path / "n.svg")
    file = job_file(tmp_path, {"widths": [5, 3]}, write_rows(tmp_path / "rows"))
    network.plot(file, settings, out=out)
    assert "phase 1" not in words(ET.parse(out).getroot())
    job = yaml.safe_load(Path(file).read_text()) | {"train": {"phases": [{"epochs": 2}]}}
    job["train"]["phases"][0]["kind"] = "greedy"
    Path(file).write_text(yaml.safe_dump(job))
    network.plot(file, settings, out=out)
    of_job = words(ET.parse(out).getroot())
    assert of_job[of_job.index("phase 1") :] == [
        "phase 1",
        "greedy, epochs: 2, lr: 0.001; pretrains",
        "encoder 1 with output, then code with",
        "decoder 1",
    ]
    cells = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    phases = [{"kind": "greedy", "epochs": 2}]
    trained = Autoencoder([5, 3], phases=phases, epochs=1, random_state=0).fit(cells)
    trained.save(str(tmp_path / "model"))
    network.plot(str(tmp_path / "model"), settings, out=out)
    of_model = words(ET.parse(out).getroot())
    assert of_model[of_model.index("phase 1") :] == of_job[of_job.index("phase 1") :]


def test_features_come_from_the_shape_and_no_shard_is_read(
    tmp_path: Path, settings: Settings
) -> None:
    done = network.plot(job_file(tmp_path, LSTM), settings, out=str(tmp_path / "n.svg"))
    assert done.summary.startswith("lstm, 4 code units, ")


def test_features_come_from_the_artifact(
    tmp_path: Path, settings: Settings, save_artifact: Callable[..., str]
) -> None:
    """Also where training dropped a constant column: 11 of 12 are left."""
    save_artifact(tmp_path / "model", drop_constant=True)
    out = str(tmp_path / "n.svg")
    real = artifact.load(str(tmp_path / "model")).module
    for source in (str(tmp_path / "model"), f"file://{tmp_path / 'model'}"):
        done = network.plot(source, settings, out=out)
        assert done.summary == summary(real) == "dense 11-7-[5]-7-11, 254 parameters"
    assert words(ET.parse(out).getroot())[0] == "tiny"


def test_an_artifacts_hostile_name_is_only_a_name(
    tmp_path: Path, settings: Settings, save_artifact: Callable[..., str]
) -> None:
    save_artifact(tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text) | {"name": HOSTILE + "\ud800"}))
    out = tmp_path / "n.svg"
    network.plot(str(tmp_path / "model"), settings, out=str(out))
    root = ET.parse(out).getroot()
    assert words(root)[0] == (HOSTILE + "\ufffd")[: drawing.LONGEST]
    assert not list(root.iter(f"{SVG}script"))
    assert "<script" not in out.read_text()


def test_dropped_columns_are_said(tmp_path: Path, settings: Settings) -> None:
    out = str(tmp_path / "n.svg")
    file = job_file(tmp_path, uri=write_rows(tmp_path / "rows"), constant="drop")
    done = network.plot(file, settings, out=out)
    assert done.notes == (
        "training drops constant columns, and how many of the 12 are is not known; "
        "pass the number that remains as --features N",
    )
    assert "note" in words(ET.parse(out).getroot())
    for features in (9, 12):
        given = network.plot(file, settings, out=out, features=features)
        assert given.notes == ()
        assert given.summary.startswith(f"dense {features}-[4]-{features}, ")
    with pytest.raises(SpecError, match="--features: found 13, a row of the shards has 12"):
        network.plot(file, settings, out=out, features=13)


@pytest.mark.parametrize(
    ("net", "features", "message"),
    [
        (
            {"widths": [4]},
            None,
            "FILE: how many features a row has is not known, because the shards do not show it "
            "(/nowhere/rows: no such file or folder); pass it as --features N",
        ),
        (LSTM, 31, "--features: found 31, the network's `shape` has 30; leave the option out"),
    ],
)
def test_what_is_not_known_or_contradicts(
    tmp_path: Path, settings: Settings, net: dict[str, Any], features: int | None, message: str
) -> None:
    file, out = job_file(tmp_path, net), tmp_path / "n.svg"
    with pytest.raises(SpecError) as caught:
        network.plot(file, settings, out=str(out), features=features)
    assert str(caught.value) == message.replace("FILE", file)
    assert not out.exists()


def test_an_artifact_knows_better(tiny_artifact: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(SpecError) as caught:
        network.plot(str(tiny_artifact), settings, out=str(tmp_path / "n.svg"), features=5)
    assert str(caught.value) == (
        f"--features: found 5, {tiny_artifact} has 12; leave the option out"
    )


def test_a_network_beyond_counting_is_refused(tmp_path: Path, settings: Settings) -> None:
    net = {"kind": "conv", "shape": [1, 1, 2**16],
           "layers": [{"channels": 2**16, "kernel": 2**16 - 1}]}  # fmt: skip
    with pytest.raises(SpecError, match="tiny.yaml: model.network: "):
        network.plot(job_file(tmp_path, net), settings, out=str(tmp_path / "n.svg"))


def test_damaged_artifacts_are_not_drawn(
    tiny_artifact: Path, tmp_path: Path, settings: Settings
) -> None:
    (tiny_artifact / artifact.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match="the manifest says"):
        network.plot(str(tiny_artifact), settings, out=str(tmp_path / "n.svg"))


# -- command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.parent.name)
def test_every_shipped_job_draws(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    given = []
    if load_kind(TrainJob, path).model.network.kind == "dense":
        given = ["--features", str(WIDTHS.get(path.parent.name, 784))]
    done = CliRunner().invoke(cli.app, ["plot-model", str(path), "--out", "x/n.svg", *given])
    assert done.exit_code == 0, done.exception
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"network      \w+[ ,].*, [\d,]+ parameters", first)
    assert second == "diagram      x/n.svg"
    root = ET.parse(tmp_path / "x" / "n.svg").getroot()
    assert words(root)[1] == first.removeprefix("network      ")
    assert len(groups(root, "code")) == 1
    printed = [words(group)[-1] for group in groups(root, "link")]
    total = sum(int(text.split()[0].replace(",", "")) for text in printed if text != "tied")
    assert f"{total:,} parameters" in first


def test_there_are_shipped_jobs() -> None:
    assert len(TRAIN) >= 12


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("FOLDER", RegistryError, "FOLDER: no artifact there (manifest.json is missing); give"),
        ("none.yaml", SpecError, "none.yaml: no such file"),
        (
            str(ROOT / "jobs/mnist/score.yaml"),
            SpecError,
            "score.yaml: found a score job; run `hourglass score ",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    source = source.replace("FOLDER", str(tmp_path))
    done = CliRunner().invoke(cli.app, ["plot-model", source])
    assert isinstance(done.exception, error)
    assert message.replace("FOLDER", str(tmp_path)) in str(done.exception)
    assert not storage.exists(str(tmp_path / "network.svg"))


def test_the_picture_is_svg_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "n.png"
    done = CliRunner().invoke(
        cli.app, ["plot-model", job_file(tmp_path), "--features", "9", "--out", str(out)]
    )
    assert done.exit_code == 2
    assert "allowed are names that end in .svg" in done.output
    assert not out.exists()
