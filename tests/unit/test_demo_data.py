"""The rows that `hourglass data make` writes: what they claim to be."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

from hourglass.cli import app
from hourglass.data.demo import STEP_S, WINDOW, lorenz


def test_lorenz_follows_its_equations() -> None:
    """Beside another integrator, for as long as chaos lets two stay together."""

    def slope(_: float, p: np.ndarray) -> list[float]:
        return [10 * (p[1] - p[0]), p[0] * (28 - p[2]) - p[1], p[0] * p[1] - 8 / 3 * p[2]]

    times = np.arange(60) * STEP_S
    start = (1.0, 1.0, 20.0)
    other = solve_ivp(slope, (0, 1.2), start, t_eval=times, rtol=1e-10, atol=1e-10).y.T
    np.testing.assert_allclose(lorenz(start, 60), other, rtol=5e-3, atol=2e-2)


def test_the_strange_windows_are_usual_values_in_another_order(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "make", "lorenz", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"{tmp_path}: 8000 rows\n")
    table = pq.read_table(tmp_path / "test").sort_by("step")
    windows = table["window"].combine_chunks().flatten().to_numpy().reshape(-1, WINDOW, 3)
    strange = table["is_anomaly"].to_numpy()
    assert (len(windows), strange.sum(), strange[2000:2200].all()) == (4000, 200, True)
    usual = np.abs(np.diff(windows[~strange], axis=1)).mean()
    assert np.abs(np.diff(windows[strange], axis=1)).mean() > 5 * usual
    # A window after the stretch overlaps its last one by all but one step.
    whole = np.sort(windows[2200][: WINDOW - 1], axis=0)
    assert np.isin(whole[:, 0], np.sort(windows[2199], axis=0)[:, 0]).all()
    train = pq.read_table(tmp_path / "train")
    assert not train["is_anomaly"].to_numpy().any()


def test_digits_are_bytes_with_labels(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "make", "digits", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"{tmp_path}: 1797 rows\n")
    table = pq.read_table(tmp_path)
    assert str(table.schema.field("image").type) == "fixed_size_list<element: uint8>[64]"
    assert set(table["label"].to_pylist()) == set(range(10))
