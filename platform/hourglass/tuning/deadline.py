"""The time of one sitting: when it is over, and which trials got further in it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

UNENDED = "it has not ended; the same command goes on with it"
OVER = "max_time_s was over; the same command goes on with it"
NO_FURTHER = (
    "max_time_s was over before one more epoch of it was; give it more time, or the same command may "
    "never get further"
)


class Deadline:
    """Runs from the first trial's start; without `max_time_s` it is never over.

    `kept` says what is on disk of a trial, to tell whether it got further.
    """

    def __init__(self, max_time_s: float | None, kept: Callable[[str], Any]) -> None:
        self._max_time_s, self._kept = max_time_s, kept
        self._began: float | None = None
        self._began_with: dict[str, Any] = {}

    def started(self, trials: Sequence[str]) -> None:
        """Trials got their process; one whose process was lost began before."""
        self._began = self._began or time.monotonic()
        if self._max_time_s is not None:
            for trial in trials:
                self._began_with.setdefault(trial, self._kept(trial))

    @property
    def over(self) -> bool:
        """True when time has run out."""
        most, began = self._max_time_s, self._began
        return most is not None and began is not None and time.monotonic() - began > most

    def reason(self, trial: str) -> str:
        """Why a trial has not ended."""
        if not self.over:
            return UNENDED
        return NO_FURTHER if self._no_further(trial) else OVER

    def note(self, ended: Sequence[str], count: int, most: int) -> str:
        """What a sitting whose time is over says; `ended` are trials, `count` is that of all points."""
        goes = "the same command goes on"
        if all(trial not in ended and self._no_further(trial) for trial in self._began_with):
            goes = "no trial got one epoch further; raise it"
        return (
            f"max_time_s: {self._max_time_s:g} s were over after {count} of at most {most} trials; "
            f"{goes}"
        )

    def _no_further(self, trial: str) -> bool:
        """True of one that began in this sitting, and of which nothing more is kept than before."""
        return trial in self._began_with and self._kept(trial) == self._began_with[trial]
