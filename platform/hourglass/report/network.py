"""The picture of a network: from a job file or an artifact to an SVG file.

Parameters are counted in the module itself, each with the connection that it belongs to. Shapes: F
features, K code units, P units before the code part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hourglass import artifact, storage
from hourglass.config.files import load_kind
from hourglass.config.train import TrainJob
from hourglass.data.prepare import feature_schema, open_dataset
from hourglass.errors import DataError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.conv import Conv, ConvLayer, ConvNetwork, Place
from hourglass.model.dense import Dense, DenseNetwork
from hourglass.model.lstm import Lstm, LstmNetwork
from hourglass.model.preprocessing import Preprocessing
from hourglass.model.spec import ModelSpec
from hourglass.report.drawing import Layer, Link, draw
from hourglass.settings import Settings
from hourglass.tracking import registry


def outline(spec: ModelSpec, features: int, unit_data: bool) -> AutoencoderModule:
    """The module without memory for its weights: shapes are all that a picture needs.

    Raises: ValueError when the network does not fit the number of features.
    """
    with torch.device("meta"):
        return AutoencoderModule(spec, Preprocessing(features, features), unit_data)


def summary(module: AutoencoderModule) -> str:
    """The network in one line: kind, widths with the code in brackets, parameters."""
    network = module.spec.network
    count = sum(weight.numel() for weight in module.parameters())
    shape = f"{network.kind}, {network.code_width:,} code units"
    if network.kind == "dense":
        features = len(module.preprocessing.kept_F)
        widths = (features, *network.widths[:-1], f"[{network.code_width}]", *network.hidden)
        shape = f"dense {'-'.join(map(str, (*widths, features)))}"
    return f"{shape}, {count:,} parameters"


def settings(part: Mapping[str, Any]) -> str:
    """What a part is set to, its kind left out: `rho: 0.05, beta: 3.0`."""
    given = {k: v for k, v in part.items() if k != "kind" and v is not None}
    return ", ".join(
        f"{k}: {f'({_part(v)})' if isinstance(v, dict) else v}" for k, v in given.items()
    )


def aside(spec: ModelSpec) -> list[tuple[str, str]]:
    """The parts that are no layers: corruption, loss, penalties and adversary, with their settings."""
    tree = spec.model_dump(mode="json")
    named = [("corruption", tree["corruption"]), ("loss", tree["loss"])]
    named += [("penalty", penalty) for penalty in tree["penalties"]]
    named += [("adversary", tree["adversary"])] if tree["adversary"] else []
    return [(name, _part(part)) for name, part in named]


def pretraining(
    phases: Sequence[Mapping[str, Any]], layers: Sequence[Layer]
) -> list[tuple[str, str]]:
    """Each phase of a dense network with its mirror: its settings, and which of `layers` it trains."""
    names = [layer.name for layer in layers[1:]]
    pairs = zip(names[: len(names) // 2], reversed(names), strict=False)
    trained = ", then ".join(f"{name} with {mirror}" for name, mirror in pairs)
    return [
        (f"phase {number}", f"{_part(phase)}; pretrains {trained}")
        for number, phase in enumerate(phases, 1)
    ]


def _part(part: Mapping[str, Any]) -> str:
    """A part in one line: its kind, then its settings."""
    return ", ".join(filter(None, (part.get("kind"), settings(part))))


def layers(module: AutoencoderModule) -> list[Layer]:
    """The layers from the row to the output; each parameter is in one connection."""
    network, spec = module.network, module.spec.network
    if isinstance(network, DenseNetwork) and isinstance(spec, Dense):
        return _dense(module, network, spec)
    if isinstance(network, ConvNetwork) and isinstance(spec, Conv):
        return _conv(module, network, spec)
    assert isinstance(network, LstmNetwork)
    assert isinstance(spec, Lstm)
    return _lstm(module, network, spec)


def _own(*parts: nn.Module) -> int:
    return sum(weight.numel() for part in parts for weight in part.parameters())


def _code(module: AutoencoderModule, size: str, link: Link) -> Layer:
    """The code, with its part and that part's settings; what the encoder ends in, if it is wider."""
    spec = module.spec
    units, part = spec.network.code_width, spec.code.model_dump(mode="json")
    before = spec.code.pre_units(units)
    if before != units:
        link = Link((*link.kind, f"to {before:,} units"), link.parameters, link.tied)
    said = [f"{name} {value}" for name, value in part.items() if name != "kind"]
    notes = (spec.code_activation, part["kind"], *said)
    return Layer("code", units, size, notes, (link,), "code")


def _output(module: AutoencoderModule, units: int, size: str, links: tuple[Link, ...]) -> Layer:
    activation = module.spec.output_activation(module.unit_data)
    return Layer("output", units, size, (activation,), links, "output")


# -- dense ------------------------------------------------------------------------------------


def _dense(module: AutoencoderModule, network: DenseNetwork, spec: Dense) -> list[Layer]:
    features = len(module.preprocessing.kept_F)
    *hidden, last = network.encoder
    made = [Layer("row", features, f"{features:,}", role="row")]
    made += _hidden("encoder", spec, hidden, list(network.encoder_norms), spec.widths, 0)
    made.append(_code(module, f"{spec.code_width:,}", Link(("dense",), _own(last))))
    *hidden, last = network.decoder
    made += _hidden("decoder", spec, hidden, list(network.decoder_norms), spec.hidden, 1)
    link = Link(("dense",), _own(last), spec.tied)
    return [*made, _output(module, features, f"{features:,}", (link,))]


def _hidden(
    side: str,
    spec: Dense,
    steps: Sequence[nn.Module],
    norms: Sequence[nn.Module],
    widths: Sequence[int],
    half: int,
) -> list[Layer]:
    """The hidden layers of one half (0: encoder), norm and dropout with the connection."""
    kind = ["dense"]
    kind += [f"{spec.norm} norm"] if spec.norm != "none" else []
    kind += [f"dropout {spec.dropout:g}"] if spec.dropout else []
    made = []
    for index, (step, norm) in enumerate(zip(steps, norms, strict=True)):
        link = Link(tuple(kind), _own(step, norm), tied=half == 1 and spec.tied)
        notes = (spec.activations[half][index],)
        units = widths[index]
        made.append(Layer(f"{side} {index + 1}", units, f"{units:,}", notes, (link,)))
    return made


# -- conv -------------------------------------------------------------------------------------


def _maps(channels: int, place: Place) -> tuple[int, str]:
    """Units of feature maps, and their size in words."""
    return channels * math.prod(place), _by((channels, *place))


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _conv(module: AutoencoderModule, network: ConvNetwork, spec: Conv) -> list[Layer]:
    depths = [spec.depth, *(layer.channels for layer in spec.layers)]
    maps = [_maps(depth, place) for depth, place in zip(depths, spec.places, strict=True)]
    downs = [
        Link(_down(layer, place), _own(step))
        for layer, place, step in zip(spec.layers, spec.places, network.encoder, strict=False)
    ]
    made = [Layer("row", *maps[0], role="row")]
    inner = len(spec.layers) if network.to_code is not None else len(spec.layers) - 1
    for index, (link, sized) in enumerate(zip(downs[:inner], maps[1:], strict=False)):
        made.append(Layer(f"encoder {index + 1}", *sized, (spec.activation,), (link,)))
    made += _middle(module, network, spec, maps[-1], downs[-1])
    ups = list(zip(reversed(spec.layers), network.decoder, strict=True))
    for index, (layer, step) in enumerate(ups):
        to, place = maps[-2 - index], spec.places[-2 - index]
        link = Link(_up(spec, layer, place, spec.places[-1 - index]), _own(step))
        if index + 1 == len(ups):
            return [*made, _output(module, *to, (link,))]
        number = index + (2 if network.from_code is not None else 1)
        made.append(Layer(f"decoder {number}", *to, (spec.activation,), (link,)))
    raise AssertionError("a conv network has a layer")


def _middle(
    module: AutoencoderModule,
    network: ConvNetwork,
    spec: Conv,
    sized: tuple[int, str],
    last: Link,
) -> list[Layer]:
    """The code: dense, with maps on either side, or the last feature maps themselves."""
    if network.to_code is None or network.from_code is None:
        return [_code(module, sized[1], last)]
    units = f"{spec.code_width:,}"
    out = Link(("dense",), _own(network.from_code))
    return [
        _code(module, units, Link(("dense",), _own(network.to_code))),
        Layer("decoder 1", *sized, (spec.activation,), (out,)),
    ]


def _down(layer: ConvLayer, place: Place) -> tuple[str, ...]:
    stride = (f"stride {layer.stride}",) if layer.stride > 1 else ()
    pool = (f"max-pool {layer.pool}",) if layer.pool > 1 else ()
    return (f"conv {_by((layer.kernel,) * len(place))}", *stride, *pool)


def _up(spec: Conv, layer: ConvLayer, place: Place, before: Place) -> tuple[str, ...]:
    window = _by((layer.kernel,) * len(place))
    if spec.up == "transposed":
        step = layer.stride * layer.pool
        return ("transposed", f"conv {window}", *((f"stride {step}",) if step > 1 else ()))
    return (*((f"copies to {_by(place)}",) if place != before else ()), f"conv {window}")


# -- lstm -------------------------------------------------------------------------------------


def _lstm(module: AutoencoderModule, network: LstmNetwork, spec: Lstm) -> list[Layer]:
    steps, values = spec.shape
    read = steps - spec.predict
    made = [Layer("row", steps * values, f"{steps} x {values}", role="row")]
    for index in range(spec.layers):
        reads = (f"reads {read} of {steps} steps",) if spec.predict and index == 0 else ()
        link = Link(("LSTM", *reads), _of_layer(network.encoder, index))
        made.append(_states(f"encoder {index + 1}", read, spec.hidden, (link,)))
    made.append(
        _code(module, f"{spec.code:,}", Link(("dense", "last step only"), _own(network.to_code)))
    )
    ways = [(f"{read} steps, back", network.backwards)]
    if network.forwards is not None:
        ways.append((f"{spec.predict} steps ahead", network.forwards))
    for index in range(spec.layers):
        links = tuple(Link((f"LSTM, {way}",), _of_layer(part.lstm, index)) for way, part in ways)
        made.append(_states(f"decoder {index + 1}", steps, spec.hidden, links))
    links = tuple(Link((f"dense, {way}",), _own(part.values)) for way, part in ways)
    return [*made, _output(module, steps * values, f"{steps} x {values}", links)]


def _states(name: str, steps: int, hidden: int, links: tuple[Link, ...]) -> Layer:
    return Layer(name, steps * hidden, f"{steps} x {hidden}", ("tanh, gated",), links)


def _of_layer(lstm: nn.LSTM, index: int) -> int:
    """Parameters of one of its layers, which torch names `..._l0`, `..._l1`, ..."""
    named = lstm.named_parameters()
    return sum(weight.numel() for name, weight in named if name.endswith(f"_l{index}"))


@dataclass(frozen=True)
class Plotted:
    """A written picture: where it is, its network in one line, what the reader must know."""

    uri: str
    summary: str
    notes: tuple[str, ...]


def plot(
    source: str, settings: Settings, *, out: str = "network.svg", features: int | None = None
) -> Plotted:
    """Draw the network of the train job file or artifact `source` to `out`.

    `features` is how many a row has, needed where neither the network nor the shards tell.
    Raises: SpecError, DataError, RegistryError, ArtifactError.
    """
    notes: tuple[str, ...] = ()
    if _is_artifact(source):
        found = registry.resolve(source, settings)
        model = artifact.load(found.path, found.digest).manifest
        kept = _agreed(features, model.features.kept, source)
        name, module = model.name, outline(model.model, kept, model.unit_data)
        phases = model.job.get("train", {}).get("phases", ())
    else:
        job = load_kind(TrainJob, source)
        width = _width(source, job, features)
        name, module = job.name or "", _outline(source, job, width)
        phases = [phase.model_dump(mode="json") for phase in job.train.phases]
        if job.data.constant == "drop" and width != features:
            notes = (
                f"training drops constant columns, and how many of the {width} are is not known; "
                "say how many stay with --features N",
            )
    line, drawn = summary(module), layers(module)
    beside = [*aside(module.spec), *pretraining(phases, drawn), *(("note", n) for n in notes)]
    storage.write(out, draw(name, line, drawn, beside).encode())
    return Plotted(out, line, notes)


def _is_artifact(source: str) -> bool:
    """True for what the registry resolves: models:/, s3:// and folders."""
    local = storage.is_local(source) and not source.startswith("models:")
    return not local or Path(source.removeprefix("file://")).is_dir()


def _outline(file: str, job: TrainJob, width: int) -> AutoencoderModule:
    try:
        return outline(job.model, width, job.unit_data)
    except RuntimeError as error:  # more weights than torch can count
        raise SpecError(f"{file}: model.network: {error}") from None


def _width(file: str, job: TrainJob, given: int | None) -> int:
    """Features of a row: what the network's shape says, else the shards, else what is given."""
    network = job.model.network
    if network.kind != "dense":
        return _agreed(given, math.prod(network.shape), "the network's `shape`")
    try:
        found = _in_shards(job)
    except DataError as error:
        if given is None:
            raise SpecError(
                f"{file}: how many features a row has is not known, for the shards do not tell "
                f"({error}); say it with --features N"
            ) from None
        return given
    if job.data.constant == "drop" and given is not None and given < found:
        return given
    return _agreed(given, found, "a row of the shards")


def _in_shards(job: TrainJob) -> int:
    data = job.data
    return feature_schema(*open_dataset(data.uri, data.manifest), data.features, data.missing).width


def _agreed(given: int | None, known: int, where: str) -> int:
    if given not in (None, known):
        raise SpecError(f"--features: found {given}, {where} has {known}; leave the option out")
    return known
