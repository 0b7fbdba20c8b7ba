"""Flags, rare levels and counts beside measures do not hide outliers: levels are damped in the loss, and
each column has its own scale in the score."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hourglass import Autoencoder

ROWS = 3000
EXTRA = {
    "flag of 30 %": lambda r: r.random(ROWS) < 0.3,
    "flag of 5 %": lambda r: r.random(ROWS) < 0.05,
    "flag of 1 %": lambda r: r.random(ROWS) < 0.01,
    "counts": lambda r: r.poisson(0.3, ROWS),
    "levels": lambda r: r.choice(4, ROWS, p=[0.7, 0.2, 0.07, 0.03]),
    "counts to 27": lambda r: r.geometric(0.3, ROWS),
    "many levels": lambda r: np.where(r.random(ROWS) < 0.8, 0, r.integers(1, 20, ROWS)),
    "sentinel": lambda r: np.where(r.random(ROWS) < 0.1, -999.0, r.normal(size=ROWS)),
    "eight flags": lambda r: r.random((ROWS, 8)) < 0.3,
}
MEASURES = ("sentinel",)
HIDES = ("flag of 30 %", "counts", "levels", "many levels", "sentinel", "eight flags")
"""Those that hide outliers from the mean squared error of columns by their range."""
UNDAMPED = {"kind": "range", "levels": 0}


@pytest.fixture(scope="module", name="table")
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Six columns of three factors, one with a heavy tail; outliers have the relations of others."""
    r = np.random.default_rng(0)
    rows = r.normal(size=(ROWS, 3)) @ r.normal(size=(3, 6)) + 0.1 * r.normal(size=(ROWS, 6))
    rows[:, 4] = np.exp(rows[:, 4])
    odd = r.choice(ROWS, ROWS // 100, replace=False)
    rows[odd] = rows[odd][:, r.permutation(6)]
    return rows, np.isin(np.arange(ROWS), odd)


def detector(rows: np.ndarray, **parameters: Any) -> Autoencoder:
    return Autoencoder(preset="anomaly", random_state=0, **parameters).fit(rows)


def auroc(rows: np.ndarray, odd: np.ndarray) -> float:
    return float(roc_auc_score(odd, detector(rows).anomaly(rows)))


def plain_auroc(rows: np.ndarray, odd: np.ndarray) -> float:
    """The control: neither damped nor scaled."""
    ae = detector(rows, scaling=UNDAMPED, scaled_score=False)
    return float(roc_auc_score(odd, ae.anomaly(rows)))


@pytest.fixture(scope="module", name="alone")
def _alone(table: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    return auroc(*table), plain_auroc(*table)


@pytest.mark.parametrize("extra", EXTRA)
def test_a_column_that_is_no_measure_costs_next_to_nothing(
    extra: str, table: tuple[np.ndarray, np.ndarray], alone: tuple[float, float]
) -> None:
    rows, odd = table
    more = np.column_stack([rows, EXTRA[extra](np.random.default_rng(5)).astype(float)])
    assert alone[0] > 0.97
    found = auroc(more, odd)
    assert found > alone[0] - (0.07 if extra in MEASURES else 0.01)
    if extra in HIDES:
        assert plain_auroc(more, odd) < alone[1] - 0.07


@pytest.mark.parametrize("levels", [3, 8, 12, 32])
def test_a_measure_in_classes_is_still_looked_at(
    levels: int, table: tuple[np.ndarray, np.ndarray]
) -> None:
    """Two of six columns as classes of their values: the outliers are found as without the damping."""
    rows, odd = table
    classes = rows.copy()
    for column in (0, 1):
        cuts = np.quantile(rows[:, column], np.linspace(0, 1, levels + 1)[1:-1])
        classes[:, column] = np.digitize(rows[:, column], cuts)
    assert auroc(classes, odd) > plain_auroc(classes, odd) - 0.03


def test_a_flag_that_is_the_anomaly_is_found(table: tuple[np.ndarray, np.ndarray]) -> None:
    rows, _ = table
    flag = np.random.default_rng(5).random(ROWS) < 0.01
    assert (
        roc_auc_score(
            flag, detector(np.column_stack([rows, flag])).anomaly(np.column_stack([rows, flag]))
        )
        > 0.95
    )


def test_the_score_divides_errors_by_each_columns_own_scale(
    table: tuple[np.ndarray, np.ndarray],
) -> None:
    """By NumPy, of six measures, a flag and a constant column."""
    flag = np.random.default_rng(5).random(ROWS) < 0.3
    rows = np.column_stack([table[0], flag, np.full(ROWS, 1.7e12)])
    ae = detector(rows, holdout=0.0, seeds=1, epochs=5, trim=0.0)
    predictor = ae.predictor_
    (member,) = predictor.members
    with torch.inference_mode():
        result = member(torch.from_numpy(rows))
        clean = result.clean_BF.double().numpy()
        errors = np.square(result.output_BF.double().numpy() - clean)
    error, variance = errors.mean(0), clean.var(0)
    error[7] = variance[7] = error.mean()
    typical = error**0.8 * variance**0.2
    measures = [0, 1, 2, 3, 4, 5, 7]
    typical *= (error / typical)[measures].mean()
    weight = 1 - 0.75 * min(error[6] / variance[6], 1)
    typical[6] = error[6] / weight
    assert weight < 0.4
    np.testing.assert_allclose(member.typical_F, typical, rtol=1e-4)
    np.testing.assert_allclose(ae.anomaly(rows), (errors / typical).mean(1), rtol=1e-4)
    parts, _ = ae.feature_errors(rows)
    np.testing.assert_allclose(parts.sum(1), ae.anomaly(rows), rtol=1e-5)
    np.testing.assert_allclose(parts.mean(0)[6], weight / 8, rtol=1e-4)
    found = predictor.score(rows)
    span = member.preprocessing.range_ratio_F.double().numpy()
    np.testing.assert_allclose(found.range_mse, (errors * span**2).sum(1) / 8, rtol=1e-4)
