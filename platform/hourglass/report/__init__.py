"""One HTML page about one model: what it is, how it learned, and what it makes of some rows."""

from dataclasses import dataclass

from hourglass import storage
from hourglass.inference.predictor import Predictor
from hourglass.report import coding, judging, making
from hourglass.report.page import Section, render
from hourglass.report.rows import Look, look, read
from hourglass.settings import Settings
from hourglass.tracking import registry


@dataclass(frozen=True)
class Reported:
    """A written page: how many rows it looks at, its sections, and the MLflow run that has it."""

    uri: str
    rows: int
    sections: tuple[str, ...]
    notes: tuple[str, ...]
    run_id: str | None


def report(
    source: str,
    settings: Settings,
    *,
    rows: str | None = None,
    label: str | None = None,
    out: str = "report.html",
    max_rows: int = 5000,
) -> Reported:
    """Write the page about the artifact or registered model `source` to `out`.

    `rows` is a Parquet URI; without it the held-out rows of training are looked at, at most
    `max_rows`. A registered model's page goes to the run of its version as well.
    Raises: RegistryError, ArtifactError, DataError.
    """
    found = registry.resolve(source, settings)
    predictor = Predictor.load(found.path, found.digest)
    sight = read(predictor.artifact.manifest, rows, label, max_rows)
    seen = look(predictor, found.version, found.digest, sight, label)
    sections = _sections(seen)
    page = render(f"{found.name} {found.version or ''}".strip(), sections)
    storage.write(out, page.encode())
    run_id = None
    if found.version is not None:
        run_id = registry.attach(settings, found, "report.html", page)
    titles = tuple(section.title for section in sections)
    return Reported(out, len(sight.judged.places), titles, sight.notes, run_id)


def _sections(seen: Look) -> list[Section]:
    """Those that apply, in the order of the page."""
    every = [
        judging.head(seen),
        judging.losses(seen),
        judging.members(seen),
        judging.referees(seen),
        judging.widths(seen),
        making.reconstructions(seen),
        making.prior(seen),
        making.ways(seen),
        coding.scatter(seen),
        coding.activations(seen),
        making.moved(seen),
        judging.scores(seen),
        coding.hashes(seen),
        making.weights(seen),
    ]
    return [section for section in every if section is not None]
