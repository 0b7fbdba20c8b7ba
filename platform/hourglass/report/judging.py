"""Sections about the model and its errors: parts, losses, scores, members, worst rows, referees.

Shapes: B rows, C raw columns, F features in model space.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hourglass.artifact import Ensemble
from hourglass.report import charts, making, referee
from hourglass.report.network import settings, summary
from hourglass.report.page import Section, note, table
from hourglass.report.referee import Verdict
from hourglass.report.rows import Floats, Look, model_space
from hourglass.tracking.shown import redact
from hourglass.training.step import rounding


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


WORST, FEATURES = 10, 3


def scores(look: Look) -> Section:
    """The histogram of scores with the threshold, and the worst rows with their worst features."""
    score, threshold = look.scores.score, look.predictor.threshold
    above = int(look.scores.is_anomaly.sum())
    drawn = charts.histogram(
        charts.bins(score, skewed=True), "score", "rows", ("threshold", threshold)
    )
    meaning = "its mean squared error in model space"
    if look.predictor.module.spec.scaled_score:
        meaning = "the mean over columns of its squared error, each on a scale of its own"
    label = [look.label] if look.label is not None else []
    columns = ["shard, row group, row", *label, "score"]
    columns += [f"worst feature {index + 1}" for index in range(FEATURES)]
    sentence = (
        f"The score of each row, {meaning}: {above} of {len(score)} "
        f"rows ({above / len(score):.2%}) are above the threshold {threshold:.4g}. Below, the rows "
        "with the highest scores, and the features that make them so, with their share of the "
        "score: value, then reconstruction."
    )
    parts = (drawn, *making.worst(look, charts.worst(score, WORST)))
    return Section("Scores", sentence, (*parts, table(columns, _worst(look))))


def _worst(look: Look) -> Iterator[list[Any]]:
    at = charts.worst(look.scores.score, WORST)
    rows = look.rows_BC[at]
    found = look.predictor.score(rows, reconstruction=True, feature_errors=True)
    assert found.feature_errors is not None
    assert found.reconstruction is not None
    assert found.imputed is not None
    kept = look.predictor.module.preprocessing.kept_F.tolist()
    names = look.predictor.feature_names
    judged = look.sight.judged
    for index, errors in enumerate(found.feature_errors):
        total = float(errors.sum()) or 1.0
        cells = []
        for feature in charts.worst(errors, FEATURES).tolist():
            missing = bool(found.imputed[index, feature])
            value = "missing, its mean taken" if missing else f"{rows[index, kept[feature]]:.4g}"
            made = float(found.reconstruction[index, kept[feature]])
            share = errors[feature] / total
            cells.append(f"{names[feature]} {share:.1%}: {value}, then {made:.4g}")
        label = [] if judged.labels is None else [judged.labels[at[index]]]
        yield [judged.places[at[index]], *label, f"{found.score[index]:.4g}", *cells]


def referees(look: Look) -> Section:
    """The model's error beside that of PCA, and of logistic PCA where model space is [0, 1]."""
    fitted, judged, mean, own = _parted(look)
    scale = look.predictor.module.preprocessing
    units, score = look.predictor.code_width, float(look.scores.score[own].mean())
    verdicts = [
        referee.verdict("this model", units, score, judged, mean),
        referee.pca(fitted, judged, mean, units),
    ]
    unit_space = float(scale.low_F.min()) >= 0.0 and float(scale.high_F.max()) <= 1.0
    more = ""
    if unit_space and units < fitted.shape[1]:
        verdicts.append(referee.logistic_pca(fitted, judged, mean, units))
        more = (
            " Logistic PCA (Schein, Saul and Ungar 2003) searches the best code of each row anew, "
            "which no encoder does in one pass."
        )
    sentence = f"{_ruling(verdicts, fitted.shape[1])} In model space; {look.sight.split}.{more}"
    beyond = rounding(torch.from_numpy(judged), torch.from_numpy(mean)).mean()
    apart = min(np.square(judged - other).mean() for other in (mean, judged[:1]))
    spread = apart > float(beyond)
    lines = [
        (v.name, v.units, f"{v.mse:.6g}", f"{v.fvu:.4f}" if spread else "undefined")
        for v in verdicts
    ]
    return Section("Referee", sentence, (table(("", "units", "MSE", "FVU"), lines),))


def _parted(look: Look) -> tuple[Floats, Floats, Floats, slice]:
    """Rows in model space, (B, F): those to learn from, those judged; training's mean (F,).

    Last, which rows of the page are judged.
    """
    scale = look.predictor.module.preprocessing
    mean = scale.mean_F.double().numpy()
    if len(look.sight.fitted):
        return model_space(look.predictor, look.sight.fitted), look.space_BF, mean, slice(None)
    return look.space_BF[::2], look.space_BF[1::2], mean, slice(1, None, 2)


def _ruling(verdicts: list[Verdict], features: int) -> str:
    """A plain sentence about the model and PCA."""
    ours, pca = verdicts[:2]
    if ours.units >= features:
        return (
            f"A code of {features} units or more can hold the whole row: PCA proves nothing here."
        )
    times = ours.mse / pca.mse if pca.mse else math.inf
    if times > 1.0:
        return (
            f"The model loses to PCA: its error is {times:.3g} times that of "
            f"{pca.units} principal components, so a linear map would serve these rows better."
        )
    return (
        f"The model beats PCA: its error is {times:.3g} times that of {pca.units} "
        "principal components."
    )


def widths(look: Look) -> Section | None:
    """The error from the first units of the code alone, of penalty `nested`, beside PCA's."""
    nested = look.model.model.nested_widths
    if not nested:
        return None
    fitted, judged, mean, own = _parted(look)
    # As many units as features can hold the whole row: PCA proves nothing there.
    every = [w for w in (*nested, look.predictor.code_width) if w < fitted.shape[1]]
    if not every:
        return None
    ours = _errors_at(look, every, own)
    verdicts = referee.pca_at(fitted, judged, mean, every)
    pca = [verdict.mse for verdict in verdicts]
    sentence = (
        "One run, codes of several widths: the error from the first units of the code alone, the "
        f"others 0, beside that of as many principal components. {_comparison(every, ours, pca)} "
        f"In model space; {look.sight.split}."
    )
    drawn = charts.widths(every, {"this model": ours, "PCA": pca})
    lines = [
        (width, f"{error:.6g}", verdict.units, f"{verdict.mse:.6g}")
        for width, error, verdict in zip(every, ours, verdicts, strict=True)
    ]
    head = ("units", "MSE of this model", "components", "MSE of PCA")
    return Section("Shorter codes", sentence, (drawn, table(head, lines)))


def _errors_at(look: Look, every: Sequence[int], own: slice) -> list[float]:
    """Mean squared error in model space of the page's rows `own`, at each width."""
    module = look.predictor.module

    def forward(tile: Tensor) -> Iterable[Tensor]:
        result = module(tile)
        for width in every:
            error_BF = (module.output_at(result.code_BK, width) - result.clean_BF).square()
            yield error_BF.mean(dim=1, dtype=torch.float64)

    found = look.predictor.map_tiles(look.rows_BC[own], forward)
    return [float(error_B.mean()) for error_B in found]


def _comparison(every: Sequence[int], ours: Sequence[float], pca: Sequence[float]) -> str:
    """A plain sentence about where the model beats PCA."""
    better = [str(width) for width, a, b in zip(every, ours, pca, strict=True) if a <= b]
    if len(better) == len(every):
        return "The model beats PCA at every width."
    if not better:
        return "The model loses to PCA at every width."
    return f"The model beats PCA at {', '.join(better)} units and loses to it at the other widths."


def members(look: Look) -> Section | None:
    """Seed, epochs and errors of each member; None for a single model."""
    model, ensemble = look.model, look.model.ensemble
    if ensemble is None:
        return None
    agreement = model.metrics.get("rank_agreement")
    agree = "A member gives all held-out rows the same score, so their ranks cannot be compared"
    if agreement is not None:
        agree = (
            "Between members, the ranks of the held-out rows have a mean Spearman correlation of "
            f"{agreement:.3f}"
        )
    sentence = (
        f"The score of a row is the {'maximum' if ensemble.combine == 'max' else 'mean'} over "
        f"{ensemble.members} models that differ in their seed alone; codes, hashes and reconstructions "
        f"on this page are the lead's, member {ensemble.lead}, whose error was the lowest. {agree}; "
        "where it is low, the ranking of a single model would be luck."
    )
    head = ("member", "seed", "epochs", "lowest holdout MSE", "last training MSE")
    return Section("Members", sentence, (table(head, _members(look, ensemble)),))


def _members(look: Look, ensemble: Ensemble) -> Iterator[tuple[str, ...]]:
    first = look.model.job.get("train", {}).get("seed")
    history = look.model.provenance.get("history", [])
    for number in range(1, ensemble.members + 1):
        records = [record for record in history if record.get("member") == number]
        held = [record["holdout_mse"] for record in records if "holdout_mse" in record]
        yield (
            f"{number} (lead)" if number == ensemble.lead else str(number),
            "not recorded" if first is None else str(first + number - 1),
            str(len(records)),
            f"{min(held):.6g}" if held else "none",
            f"{records[-1]['train_mse']:.6g}" if records else "none",
        )
