"""Sections about the model itself: what it is, and how its loss fell."""

from collections.abc import Iterable, Iterator
from typing import Any

from hourglass.report import charts
from hourglass.report.layers import settings, summary
from hourglass.report.look import Look
from hourglass.report.page import Section, note, table
from hourglass.tracking.shown import redact


def head(look: Look) -> Section:
    """Name, version, digests, network, holdout metrics, the parts, the rows of this page."""
    model = look.model
    dataset = model.provenance.get("dataset", {})
    facts = {
        "name": model.name,
        "version": look.version or "not registered",
        "digest": look.digest,
        "network": summary(look.predictor.module),
        "data digest": dataset.get("digest", "not recorded"),
        **{name: f"{model.metrics[name]:.6g}" for name in _holdout(model.metrics)},
        "threshold": f"{model.calibration.threshold:.6g}, the {model.calibration.quantile:g} "
        f"quantile of {model.calibration.rows} held-out scores",
        "rows of this page": f"{len(look.rows_BC)} {look.sight.what} of {redact(look.sight.source)}",
    }
    sentence = "What the model is, which data it learned from, and which parts it is made of."
    notes = [note(text) for text in look.sight.notes]
    parts = (table((), facts.items()), table(("part", "kind", "set to"), _parts(look)))
    return Section("Model", sentence, (*notes, *parts))


def _holdout(metrics: Iterable[str]) -> list[str]:
    """Metrics of the held-out rows by name, those at several widths by width."""
    held = (name for name in metrics if name.startswith("holdout"))
    return sorted(held, key=lambda name: (name.rstrip("0123456789"), len(name), name))


def _parts(look: Look) -> Iterator[tuple[str, str, str]]:
    """Each part, its kind and its settings; what `auto` and defaults became, too."""
    spec = look.model.model
    scaling = look.model.job.get("data", {}).get("scaling")
    phases = look.model.job.get("train", {}).get("phases", [])
    tree = {"scaling": scaling, **spec.model_dump(mode="json"), "phases": phases}
    for name, value in tree.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield name, part.get("kind", ""), settings(part)
            elif part is not None:
                yield name, str(part), ""
    yield "code activation", spec.code_activation, ""
    yield "output activation", spec.output_activation(look.model.unit_data), ""


def losses(look: Look) -> Section | None:
    """The loss by term over epochs, when the artifact has a history; of an ensemble, the lead's."""
    history: list[dict[str, Any]] = look.model.provenance.get("history", [])
    if look.model.ensemble is not None:
        history = [record for record in history if record.get("member") == look.model.ensemble.lead]
    if not history:
        return None
    sentence = (
        "The loss, its terms and the errors over the epochs of training; a holdout error that "
        "rises while the training error falls is overfitting."
    )
    return Section("Loss", sentence, (charts.losses(history),))
