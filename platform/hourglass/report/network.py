"""The picture of a network: from a job file or an artifact to an SVG file."""

import math
from dataclasses import dataclass
from pathlib import Path

from hourglass import artifact, storage
from hourglass.config.files import load_kind
from hourglass.config.train import TrainJob
from hourglass.data.prepare import feature_schema, open_dataset
from hourglass.errors import DataError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.report.drawing import draw
from hourglass.report.layers import aside, layers, outline, pretraining, summary
from hourglass.settings import Settings
from hourglass.tracking import registry


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
