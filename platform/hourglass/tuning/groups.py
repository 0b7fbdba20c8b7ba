"""What the workers of trials reserve, given back where Ray would keep it.

Ray frees a placement group whose creator was killed only when the whole job ends. A run frees what its
workers reserved, but not one whose own process is lost. So the sweep frees what a lost trial held, and at
its end what all others did; later by a moment, for as long as the trial's controller lives it would
reserve anew.
"""

import time

from hourglass.training.launch import free

GONE_S = 2.0
"""Seconds after which a trial's processes are gone; workers of the next one wait 30 s for room."""


class Groups:
    """The placement groups of trials of several workers."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._left: list[tuple[float, str]] = []

    def reserved(self, trial_id: str, group: str) -> None:
        """Workers of a trial of Tune's started in this group."""
        self._held[trial_id] = group

    def ended(self, trial_id: str) -> None:
        """The trial ended, in whatever way."""
        group = self._held.pop(trial_id, None)
        if group is not None:
            self._left.append((time.monotonic(), group))

    def give_back(self) -> None:
        """Free what trials held that are gone by now; what is free already stays free."""
        due = time.monotonic() - GONE_S
        free([group for at, group in self._left if at <= due])
        self._left = [left for left in self._left if left[0] > due]

    def give_back_all(self) -> None:
        """Free what any trial held: Tune does not say of those that it ended together."""
        free([*self._held.values(), *(group for _, group in self._left)])
