"""The picture of a network: from a job file or an artifact to an SVG file.

Parameters are counted in the module itself, each with the connection that it belongs to. Shapes: F
features, K code units, P units before the code part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hourglass import artifact, storage
from hourglass.config.files import load_kind
from hourglass.config.train import TrainJob
from hourglass.data.dataset import open_dataset
from hourglass.errors import DataError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.network import Layer, count
from hourglass.model.preprocessing import Preprocessing
from hourglass.model.spec import ModelSpec
from hourglass.report.drawing import draw
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
    features = len(module.preprocessing.kept_F)
    return f"{module.spec.network.summary(features)}, {count(module):,} parameters"


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
    """The network's layers, with what the code part and the output add to theirs."""
    return [_completed(module, layer) for layer in module.network.layers()]


def _completed(module: AutoencoderModule, layer: Layer) -> Layer:
    spec = module.spec
    if layer.role == "output":
        return replace(layer, notes=(spec.output_activation(module.unit_data), *layer.notes))
    if layer.role != "code":
        return layer
    part = spec.code.model_dump(mode="json")
    set_to = [f"{name} {value}" for name, value in part.items() if name != "kind"]
    before, links = spec.code.pre_units(layer.units), layer.links
    if before != layer.units:  # the encoder ends in more units than the code has
        links = tuple(replace(link, kind=(*link.kind, f"to {before:,} units")) for link in links)
    notes = (spec.code_activation, spec.code.kind, *set_to, *layer.notes)
    return replace(layer, notes=notes, links=links)


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
                "pass the number that remains as --features N",
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
    shape = job.model.network.row_shape
    if shape is not None:
        return _agreed(given, math.prod(shape), "the network's `shape`")
    try:
        found = _in_shards(job)
    except DataError as error:
        if given is None:
            raise SpecError(
                f"{file}: how many features a row has is not known, because the shards do not show it "
                f"({error}); pass it as --features N"
            ) from None
        return given
    if job.data.constant == "drop" and given is not None and given < found:
        return given
    return _agreed(given, found, "a row of the shards")


def _in_shards(job: TrainJob) -> int:
    data = job.data
    return open_dataset(data.uri, data.manifest).features(data.features, data.missing).width


def _agreed(given: int | None, known: int, where: str) -> int:
    if given not in (None, known):
        raise SpecError(f"--features: found {given}, {where} has {known}; leave the option out")
    return known
