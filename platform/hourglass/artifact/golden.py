"""The golden rows: a few raw rows, and the outputs that a model which loads must give for them again.

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
"""Relative; another CPU may round differently, a different weight may not hide below this."""


@torch.no_grad()
def outputs(members: Sequence[AutoencoderModule], rows_BC: Tensor) -> dict[str, Tensor]:
    """The golden rows (B, C) with the lead's code (B, K) and output (B, F) in model space.

    With more members than the lead, also the outputs (M - 1, B, F) of the others.
    """
    lead, *others = (member(rows_BC) for member in members)
    found = {"rows": rows_BC, "code": lead.code_BK, "output": lead.output_BF}
    if others:
        found["output_of_members"] = torch.stack([other.output_BF for other in others])
    return {name: value.contiguous() for name, value in found.items()}


def require_rows(path: str, module: AutoencoderModule, golden: dict[str, Tensor]) -> None:
    """Raise ArtifactError for no rows, too many, or rows of another width than the module's."""
    rows, width = golden["rows"], module.preprocessing.columns
    if rows.ndim != 2 or rows.shape[1] != width or not 1 <= len(rows) <= MOST_ROWS:
        raise ArtifactError(
            f"{path}: golden rows of shape {tuple(rows.shape)}, needed are 1 to {MOST_ROWS} "
            f"of width {width}"
        )


def check(path: str, members: Sequence[AutoencoderModule], golden: dict[str, Tensor]) -> None:
    """Raise ArtifactError where `members` do not give what the file `path` holds."""
    names = ["code", "output", *(["output_of_members"] if members[1:] else []), "rows"]
    if sorted(golden) != names:
        raise ArtifactError(f"{path}: holds {', '.join(sorted(golden))}, not {', '.join(names)}")
    require_rows(path, members[0], golden)
    for name, value in outputs(members, golden["rows"]).items():
        want = golden[name]
        if want.shape != value.shape or want.dtype != value.dtype:
            raise ArtifactError(f"{path}: tensor '{name}' is misshapen")
        if name == "rows":
            continue
        error = float((value - want).abs().max())
        if not math.isfinite(error) or error > TOLERANCE * max(1.0, float(want.abs().max())):
            raise ArtifactError(f"{path}: golden rows give another {name} (off by {error:.3g})")
