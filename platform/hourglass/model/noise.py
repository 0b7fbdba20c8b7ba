"""The random numbers of training, which do not depend on the number of workers.

Those of a step belong to the rows of the whole batch, by their place in it. Each worker draws them for
all rows and keeps those of its own, so a row sees the same noise whoever computes it.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor


class Noise:
    """Draws for the rows of a batch; after `seed` they repeat.

    The first dimension of every shape is the number of this worker's rows.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._generator = torch.Generator(device=device)
        self._start, self._total = 0, 0

    @property
    def device(self) -> torch.device:
        """Where the draws are made."""
        return self._generator.device

    def seed(self, seed: int, start: int = 0, total: int = 0) -> Self:
        """Begin the draws of a step whose batch has `total` rows, this worker's from `start` on.

        Without a total, this worker has all rows.
        """
        self._generator.manual_seed(seed)
        self._start, self._total = start, total
        return self

    def again(self) -> None:
        """Begin the same draws again."""
        self._generator.manual_seed(self._generator.initial_seed())

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """N(0, 1)."""
        return self._mine(torch.randn, shape, dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Evenly in [0, 1)."""
        return self._mine(torch.rand, shape, dtype=dtype)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Each of 0 to `below` - 1 with equal probability."""
        return self._mine(lambda size, **options: torch.randint(below, size, **options), shape)

    def _mine(
        self, draw: Callable[..., Tensor], shape: tuple[int, ...], **options: torch.dtype | None
    ) -> Tensor:
        rows, *others = shape
        whole = (self._total or rows, *others)
        drawn = draw(whole, generator=self._generator, device=self.device, **options)
        return drawn[self._start : self._start + rows]
