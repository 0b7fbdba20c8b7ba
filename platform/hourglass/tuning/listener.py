"""Who hears how a sweep goes."""

from collections.abc import Sequence
from typing import Any, Protocol

from hourglass.training.state import Record
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.trials import Crew


class Listener(Protocol):
    """Hears how a sweep goes, in the process that launched it."""

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None:
        """How many trials there will be at most, what they may use, and of which shards."""
        ...

    def known(self, entry: Entry) -> None:
        """A trial that ended before, or a point that is no job."""
        ...

    def placed(self, dataset: dict[str, Any]) -> None:
        """The rows were read and lie in memory."""
        ...

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        ...

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """The trials of these values train, together if they are several."""
        ...

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended; `uri` is its artifact's, if it is finished, `history` its epochs."""
        ...
