"""Reference outputs: a few raw rows, and the outputs that a loaded model must reproduce for them.

Shapes: B rows, C columns, K code units, F features, M members.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hourglass.errors import ArtifactError
from hourglass.model.autoencoder import AutoencoderModule

MOST_ROWS = 1024
TOLERANCE = 1e-4
"""Relative: wide enough for the rounding of another CPU, too narrow to hide a different weight."""


@torch.no_grad()
def outputs(members: Sequence[AutoencoderModule], rows_BC: Tensor) -> dict[str, Tensor]:
    """The rows (B, C) with the code (B, K) and output (B, F), in model space, of the first member.

    Of an ensemble, also the outputs (M - 1, B, F) of its other members.
    """
    primary, *others = (member(rows_BC) for member in members)
    found = {"rows": rows_BC, "code": primary.code_BK, "output": primary.output_BF}
    if others:
        found["output_of_members"] = torch.stack([other.output_BF for other in others])
    return {name: value.contiguous() for name, value in found.items()}


def require_rows(path: str, module: AutoencoderModule, recorded: dict[str, Tensor]) -> None:
    """Raise ArtifactError for no rows, too many, or rows of another width than the module's."""
    rows, width = recorded["rows"], module.preprocessing.columns
    if rows.ndim != 2 or rows.shape[1] != width or not 1 <= len(rows) <= MOST_ROWS:
        raise ArtifactError(
            f"{path}: reference rows of shape {tuple(rows.shape)}, expected 1 to {MOST_ROWS} "
            f"of width {width}"
        )


def check(path: str, members: Sequence[AutoencoderModule], recorded: dict[str, Tensor]) -> None:
    """Raise ArtifactError unless `members` reproduce the outputs `recorded` in the file `path`."""
    names = ["code", "output", *(["output_of_members"] if members[1:] else []), "rows"]
    if sorted(recorded) != names:
        raise ArtifactError(f"{path}: holds {', '.join(sorted(recorded))}, not {', '.join(names)}")
    require_rows(path, members[0], recorded)
    for name, value in outputs(members, recorded["rows"]).items():
        want = recorded[name]
        if want.shape != value.shape or want.dtype != value.dtype:
            raise ArtifactError(
                f"{path}: tensor '{name}' is {want.dtype} {tuple(want.shape)}, "
                f"the spec implies {value.dtype} {tuple(value.shape)}"
            )
        if name == "rows":
            continue
        error = float((value - want).abs().max())
        if not math.isfinite(error) or error > TOLERANCE * max(1.0, float(want.abs().max())):
            raise ArtifactError(f"{path}: reference {name} is not reproduced (off by {error:.3g})")
