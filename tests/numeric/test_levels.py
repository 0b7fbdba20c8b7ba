"""Rare levels, flags and counts beside measures: they do not make outliers of whoever has them."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hourglass import Autoencoder
from hourglass.data.stats import measure
from hourglass.model.preprocessing import ColumnStats, Range

ROWS = 3000
EXTRA = {
    "flag of 30 %": lambda r: r.random(ROWS) < 0.3,
    "flag of 5 %": lambda r: r.random(ROWS) < 0.05,
    "flag of 1 %": lambda r: r.random(ROWS) < 0.01,
    "counts": lambda r: r.poisson(0.3, ROWS),
    "levels": lambda r: r.choice(4, ROWS, p=[0.7, 0.2, 0.07, 0.03]),
}


@pytest.fixture(scope="module", name="table")
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Six columns of three factors, one with a heavy tail; outliers have the relations of others."""
    r = np.random.default_rng(0)
    rows = r.normal(size=(ROWS, 3)) @ r.normal(size=(3, 6)) + 0.1 * r.normal(size=(ROWS, 6))
    rows[:, 4] = np.exp(rows[:, 4])
    odd = r.choice(ROWS, ROWS // 100, replace=False)
    rows[odd] = rows[odd][:, r.permutation(6)]
    return rows, np.isin(np.arange(ROWS), odd)


def auroc(rows: np.ndarray, odd: np.ndarray, **parameters: Any) -> float:
    ae = Autoencoder(preset="anomaly", random_state=0, **parameters).fit(rows)
    return float(roc_auc_score(odd, ae.anomaly(rows)))


@pytest.fixture(scope="module", name="alone")
def _alone(table: tuple[np.ndarray, np.ndarray]) -> float:
    return auroc(*table)


@pytest.mark.parametrize("extra", EXTRA)
def test_a_column_of_levels_costs_the_preset_next_to_nothing(
    extra: str, table: tuple[np.ndarray, np.ndarray], alone: float
) -> None:
    rows, odd = table
    more = np.column_stack([rows, EXTRA[extra](np.random.default_rng(5)).astype(float)])
    assert alone > 0.95
    assert auroc(more, odd) > alone - 0.01
    if extra == "flag of 30 %":  # the control: by its range alone, it hides most outliers
        assert auroc(more, odd, scaling={"kind": "range", "levels": 0}) < alone - 0.1


def test_levels_are_a_quarter_of_a_typical_deviation_wide() -> None:
    r = np.random.default_rng(0)
    measures = r.normal(size=(500, 3)) * [1.0, 5.0, 100.0]
    flag = (r.random(500) < 0.1).astype(float)
    constant = np.full(500, 7.0)
    stats = measure(np.column_stack([measures, flag, constant]), levels=True)
    figures = ColumnStats(
        stats.mean, stats.sd, stats.low, stats.high, stats.excess, stats.constant, stats.distinct
    )
    plain, damped = (Range(levels=levels).affine(figures).scale for levels in (0, 12))
    typical = np.median(measures.std(0) / np.ptp(measures, axis=0))
    np.testing.assert_allclose(damped / plain, [1.0, 1.0, 1.0, 4.0 / typical, 1.0])
    # Where most columns are levels, they are the measure of each other.
    stats = measure(np.column_stack([measures[:, 0], flag, 1.0 - flag]), levels=True)
    figures = ColumnStats(
        stats.mean, stats.sd, stats.low, stats.high, stats.excess, stats.constant, stats.distinct
    )
    assert Range(levels=12).affine(figures).scale.tolist() == Range().affine(figures).scale.tolist()
