"""Sections of rows made from codes, as pictures: draws from the prior, ways between rows, one code
unit moved.

Shapes: B rows, C raw columns, K code units.
"""

import numpy as np

from hourglass.errors import DataError
from hourglass.inference import generate
from hourglass.report import figures, showing
from hourglass.report.look import Look
from hourglass.report.page import Section

DRAWS, ACROSS = 48, 12
WAYS, MOVED, STEPS = 4, 8, 9
BEYOND = 0.00135
"""Share of rows left out at each end of a unit's way: of a normal unit, those beyond 3 sd."""


def prior(look: Look) -> Section | None:
    """Rows from the prior, of a model that has one."""
    if look.shape is None:
        return None
    try:
        made = generate.prior(look.predictor, DRAWS, seed=0)
    except DataError:  # no prior to draw from
        return None
    sentence = (
        "New rows: codes drawn from the prior, decoded. They look like real rows where the codes of "
        "real rows fill the prior."
    )
    like = showing.shown(look, showing.SHOWN)
    sheet = showing.strip(look.shape, f"{DRAWS} draws, seed 0", made, like, ACROSS)
    return Section("Rows from the prior", sentence, (sheet,))


def ways(look: Look) -> Section | None:
    """From one row to another along the straight line between their codes."""
    if look.shape is None:
        return None
    rows = showing.shown(look, 2 * WAYS)
    lines = [
        np.concatenate(
            [[first], generate.interpolate(look.predictor, first, second, STEPS), [second]]
        )
        for first, second in zip(rows[::2], rows[1::2], strict=False)
    ]
    sentence = (
        "Each line goes from one row to another: the rows themselves at both ends, between them what "
        f"the model makes of {STEPS} codes on the straight line from the one's code to the other's."
    )
    sheet = showing.strip(look.shape, "row, way, row", np.concatenate(lines), rows, STEPS + 2)
    return Section("Ways between rows", sentence, (sheet,))


def moved(look: Look) -> Section | None:
    """One row's code with each of the units that vary most moved, all others as they are."""
    if look.shape is None:
        return None
    code, (row,) = look.scores.code, showing.shown(look, 1)
    alive = int((~figures.dead_units(code)).sum())
    units = figures.worst(code.std(axis=0, dtype=np.float64), min(MOVED, alive)).tolist()
    lines = []
    for unit in units:
        low, high = np.quantile(code[:, unit], (BEYOND, 1.0 - BEYOND))
        values = np.linspace(low, high, STEPS, dtype=np.float32)
        made = np.concatenate([[row], generate.traverse(look.predictor, row, unit, values)])
        caption = f"unit {unit + 1}, {low:.3g} to {high:.3g}"
        lines.append(showing.strip(look.shape, caption, made, like=row))
    sentence = (
        f"What the units do: a row, then its code with one unit moved over the range it has in the "
        f"rows of this page ({BEYOND:.2%} of them left out at either end), all others as they are. "
        f"Shown: {len(units)} of {code.shape[1]} units, those that vary most."
    )
    return Section("Code units moved", sentence, tuple(lines), beside=True) if lines else None
