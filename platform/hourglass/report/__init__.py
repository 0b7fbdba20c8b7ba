"""A report: one HTML page about a model, its training, and its answers for some rows."""

from dataclasses import dataclass

from hourglass import storage
from hourglass.inference.predictor import Predictor
from hourglass.report import codes, evaluation, pictures
from hourglass.report.page import Section, render
from hourglass.report.selection import Context, evaluate, select
from hourglass.settings import Settings
from hourglass.tracking import registry


@dataclass(frozen=True)
class Reported:
    """A written page: its URI, number of rows, section titles, warnings, and MLflow run, if any."""

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

    `rows` is a Parquet URI; the default are the held-out rows of training, at most `max_rows`. The
    page of a registered model is also logged to the MLflow run of its version.
    Raises: RegistryError, ArtifactError, DataError.
    """
    found = registry.resolve(source, settings)
    predictor = Predictor.load(found.path, found.digest)
    selection = select(predictor.artifact.manifest, rows, label, max_rows)
    context = evaluate(predictor, found.version, found.digest, selection, label)
    sections = _sections(context)
    page = render(f"{found.name} {found.version or ''}".strip(), sections)
    storage.write(out, page.encode())
    run_id = None
    if found.version is not None:
        run_id = registry.attach(settings, found, "report.html", page)
    titles = tuple(section.title for section in sections)
    return Reported(out, len(selection.sample.places), titles, selection.notes, run_id)


def _sections(context: Context) -> list[Section]:
    """The sections that apply to the model, in the order of the page."""
    every = [
        evaluation.overview(context),
        evaluation.losses(context),
        evaluation.members(context),
        evaluation.baselines(context),
        evaluation.shorter_codes(context),
        pictures.reconstructions(context),
        pictures.draws(context),
        pictures.interpolations(context),
        codes.scatter(context),
        codes.activations(context),
        pictures.traversals(context),
        evaluation.scores(context),
        codes.hashes(context),
        pictures.weights(context),
    ]
    return [section for section in every if section is not None]
