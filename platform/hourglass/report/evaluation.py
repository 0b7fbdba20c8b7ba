"""Sections about the model and its errors: parts, losses, members, baselines, scores.

Shapes: B rows, C raw columns, F features in model space.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hourglass.artifact import Ensemble
from hourglass.errors import redact
from hourglass.report import baseline, charts, pictures
from hourglass.report.baseline import Evaluation
from hourglass.report.network import settings, summary
from hourglass.report.page import Section, note, table
from hourglass.report.selection import Context, Floats, model_space
from hourglass.training.step import rounding


def overview(context: Context) -> Section:
    """Name, version, digests, network, holdout metrics, parts, and the rows of this report."""
    model, selection = context.model, context.selection
    dataset = model.provenance.get("dataset", {})
    facts = {
        "name": model.name,
        "version": context.version or "not registered",
        "digest": context.digest,
        "network": summary(context.predictor.module),
        "data digest": dataset.get("digest", "not recorded"),
        **{name: f"{model.metrics[name]:.6g}" for name in _holdout(model.metrics)},
        "threshold": f"{model.calibration.threshold:.6g}, the {model.calibration.quantile:g} "
        f"quantile of {model.calibration.rows} held-out scores",
        "rows of this report": f"{len(context.rows_BC)} {selection.what} of "
        f"{redact(selection.source)}",
    }
    text = "The model, the data it was trained on, and its parts."
    notes = [note(line) for line in selection.notes]
    parts = (table((), facts.items()), table(("part", "kind", "fields"), _parts(context)))
    return Section("Model", text, (*notes, *parts))


def _holdout(metrics: Iterable[str]) -> list[str]:
    """Metrics of the held-out rows by name, those at several widths by width."""
    held = (name for name in metrics if name.startswith("holdout"))
    return sorted(held, key=lambda name: (name.rstrip("0123456789"), len(name), name))


def _parts(context: Context) -> Iterator[tuple[str, str, str]]:
    """Each part, its kind and its fields, with `auto` and defaults resolved."""
    spec = context.model.model
    scaling = context.model.job.get("data", {}).get("scaling")
    phases = context.model.job.get("train", {}).get("phases", [])
    tree = {"scaling": scaling, **spec.model_dump(mode="json"), "phases": phases}
    for name, value in tree.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield name, part.get("kind", ""), settings(part)
            elif part is not None:
                yield name, str(part), ""
    yield "code activation", spec.code_activation, ""
    yield "output activation", spec.output_activation(context.model.unit_data), ""


def losses(context: Context) -> Section | None:
    """The loss by term over epochs, if the artifact has a history; that of the primary member."""
    ensemble = context.model.ensemble
    history: list[dict[str, Any]] = context.model.provenance.get("history", [])
    if ensemble is not None:
        history = [record for record in history if record.get("member") == ensemble.primary]
    if not history:
        return None
    text = (
        "The loss, its terms and the errors over the epochs of training. A holdout error that "
        "rises while the training error falls indicates overfitting."
    )
    return Section("Loss", text, (charts.losses(history),))


ROWS, FEATURES = 10, 3


def scores(context: Context) -> Section:
    """The histogram of scores with the threshold, and the rows with the highest scores."""
    score, threshold = context.scores.score, context.predictor.threshold
    above = int(context.scores.is_anomaly.sum())
    drawn = charts.histogram(
        charts.bins(score, skewed=True), "score", "rows", ("threshold", threshold)
    )
    meaning = "its mean squared error in model space"
    if context.predictor.module.spec.scaled_score:
        meaning = "the mean over columns of its squared error, scaled for each column"
    label = [context.label] if context.label is not None else []
    columns = ["shard, row group, row", *label, "score"]
    columns += [f"feature {index + 1}" for index in range(FEATURES)]
    text = (
        f"The score of each row, {meaning}: {above} of {len(score)} "
        f"rows ({above / len(score):.2%}) are above the threshold {threshold:.4g}. Below, the rows "
        "with the highest scores and the features that contribute most, with their share of the "
        "score: value, then reconstruction."
    )
    parts = (drawn, *pictures.most_abnormal(context, charts.largest(score, ROWS)))
    return Section("Scores", text, (*parts, table(columns, _most_abnormal(context))))


def _most_abnormal(context: Context) -> Iterator[list[Any]]:
    at = charts.largest(context.scores.score, ROWS)
    rows = context.rows_BC[at]
    found = context.predictor.score(rows, reconstruction=True, feature_errors=True)
    assert found.feature_errors is not None
    assert found.reconstruction is not None
    assert found.imputed is not None
    kept = context.predictor.module.preprocessing.kept_F.tolist()
    names = context.predictor.feature_names
    sample = context.selection.sample
    for index, errors in enumerate(found.feature_errors):
        total = float(errors.sum()) or 1.0
        cells = []
        for feature in charts.largest(errors, FEATURES).tolist():
            missing = bool(found.imputed[index, feature])
            value = (
                "missing, imputed by its mean" if missing else f"{rows[index, kept[feature]]:.4g}"
            )
            made = float(found.reconstruction[index, kept[feature]])
            share = errors[feature] / total
            cells.append(f"{names[feature]} {share:.1%}: {value}, then {made:.4g}")
        label = [] if sample.labels is None else [sample.labels[at[index]]]
        yield [sample.places[at[index]], *label, f"{found.score[index]:.4g}", *cells]


def baselines(context: Context) -> Section:
    """The errors of the model, of PCA, and of logistic PCA if model space is [0, 1]."""
    fitted, rows, mean, own = _split(context)
    scale = context.predictor.module.preprocessing
    units, score = context.predictor.code_width, float(context.scores.score[own].mean())
    evaluations = [
        baseline.evaluation("this model", units, score, rows, mean),
        baseline.pca(fitted, rows, mean, units),
    ]
    unit_space = float(scale.low_F.min()) >= 0.0 and float(scale.high_F.max()) <= 1.0
    more = ""
    if unit_space and units < fitted.shape[1]:
        evaluations.append(baseline.logistic_pca(fitted, rows, mean, units))
        more = (
            " Logistic PCA (Schein, Saul and Ungar 2003) optimizes the code of each row separately, "
            "which an encoder cannot do in one pass."
        )
    compared = _comparison(evaluations, fitted.shape[1])
    text = f"{compared} In model space; {context.selection.split}.{more}"
    slack = rounding(torch.from_numpy(rows), torch.from_numpy(mean)).mean()
    spread = min(np.square(rows - other).mean() for other in (mean, rows[:1]))
    known = spread > float(slack)
    lines = [
        (each.name, each.units, f"{each.mse:.6g}", f"{each.fvu:.4f}" if known else "undefined")
        for each in evaluations
    ]
    return Section("Baselines", text, (table(("", "units", "MSE", "FVU"), lines),))


def _split(context: Context) -> tuple[Floats, Floats, Floats, slice]:
    """Rows in model space (B, F) to fit baselines on and to evaluate, and the training mean (F,).

    Last, which of the selected rows are evaluated.
    """
    space_BF, fitted = context.space_BF, context.selection.fitted
    mean = context.predictor.module.preprocessing.mean_F.double().numpy()
    if len(fitted):
        return model_space(context.predictor, fitted), space_BF, mean, slice(None)
    return space_BF[::2], space_BF[1::2], mean, slice(1, None, 2)


def _comparison(evaluations: list[Evaluation], features: int) -> str:
    """How the error of the model compares to that of PCA."""
    ours, pca = evaluations[:2]
    if ours.units >= features:
        return (
            f"A code of {features} or more units can store the whole row, so a comparison with PCA "
            "is meaningless."
        )
    times = ours.mse / pca.mse if pca.mse else math.inf
    if times > 1.0:
        return (
            f"PCA beats the model: the model's error is {times:.3g} times that of "
            f"{pca.units} principal components, so a linear map is a better choice for these rows."
        )
    return (
        f"The model beats PCA: its error is {times:.3g} times that of {pca.units} "
        "principal components."
    )


def shorter_codes(context: Context) -> Section | None:
    """The error with only the first units of the code (penalty `nested`), and that of PCA."""
    nested = context.model.model.nested_widths
    if not nested:
        return None
    fitted, rows, mean, own = _split(context)
    # As many units as features can store the whole row, so the comparison would be meaningless.
    every = [w for w in (*nested, context.predictor.code_width) if w < fitted.shape[1]]
    if not every:
        return None
    ours = _errors_at(context, every, own)
    evaluations = baseline.pca_at(fitted, rows, mean, every)
    pca = [each.mse for each in evaluations]
    text = (
        "The error with only the first units of the code, the others set to 0, and that of as many "
        f"principal components. {_comparison_at(every, ours, pca)} "
        f"In model space; {context.selection.split}."
    )
    drawn = charts.widths(every, {"this model": ours, "PCA": pca})
    lines = [
        (width, f"{error:.6g}", each.units, f"{each.mse:.6g}")
        for width, error, each in zip(every, ours, evaluations, strict=True)
    ]
    head = ("units", "MSE of this model", "components", "MSE of PCA")
    return Section("Shorter codes", text, (drawn, table(head, lines)))


def _errors_at(context: Context, every: Sequence[int], own: slice) -> list[float]:
    """Mean squared error in model space of the selected rows `own`, at each width."""
    module = context.predictor.module

    def forward(tile: Tensor) -> Iterable[Tensor]:
        result = module(tile)
        for width in every:
            error_BF = (module.output_at(result.code_BK, width) - result.clean_BF).square()
            yield error_BF.mean(dim=1, dtype=torch.float64)

    found = context.predictor.map_tiles(context.rows_BC[own], forward)
    return [float(error_B.mean()) for error_B in found]


def _comparison_at(every: Sequence[int], ours: Sequence[float], pca: Sequence[float]) -> str:
    """The widths at which the model beats PCA."""
    better = [str(width) for width, a, b in zip(every, ours, pca, strict=True) if a <= b]
    if len(better) == len(every):
        return "The model beats PCA at every width."
    if not better:
        return "PCA beats the model at every width."
    return f"The model beats PCA at {', '.join(better)} units; PCA is better at the other widths."


def members(context: Context) -> Section | None:
    """Seed, epochs and errors of each member; None for a single model."""
    model, ensemble = context.model, context.model.ensemble
    if ensemble is None:
        return None
    agreement = model.metrics.get("rank_agreement")
    agree = "A member gives all held-out rows the same score, so their ranks cannot be compared."
    if agreement is not None:
        agree = (
            "The mean Spearman correlation between the members' scores of the held-out rows is "
            f"{agreement:.3f}; if it is low, the ranking of a single model depends on its seed."
        )
    text = (
        f"The score of a row is the {'maximum' if ensemble.combine == 'max' else 'mean'} over "
        f"{ensemble.members} models that differ only in their seed. Codes, hashes and "
        f"reconstructions in this report are those of the primary member {ensemble.primary}, which has "
        f"the lowest error. {agree}"
    )
    head = ("member", "seed", "epochs", "lowest holdout MSE", "last training MSE")
    return Section("Members", text, (table(head, _members(context, ensemble)),))


def _members(context: Context, ensemble: Ensemble) -> Iterator[tuple[str, ...]]:
    first = context.model.job.get("train", {}).get("seed")
    history = context.model.provenance.get("history", [])
    for number in range(1, ensemble.members + 1):
        records = [record for record in history if record.get("member") == number]
        held = [record["holdout_mse"] for record in records if "holdout_mse" in record]
        yield (
            f"{number} (primary)" if number == ensemble.primary else str(number),
            "not recorded" if first is None else str(first + number - 1),
            str(len(records)),
            f"{min(held):.6g}" if held else "none",
            f"{records[-1]['train_mse']:.6g}" if records else "none",
        )
