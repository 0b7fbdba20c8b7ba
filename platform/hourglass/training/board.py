"""The board: where workers leave words for the process that launched the run, which listens.

`ray.train.report` waits for every worker and for the controller's next look, and a metric without a
checkpoint does not survive it; a board is asked when somebody wants to know.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import ray

from hourglass.errors import (
    ArtifactError,
    ClusterError,
    DataError,
    HourglassError,
    SpecError,
    TrainingError,
)
from hourglass.spec import TrainJob
from hourglass.training.state import Record

KINDS = {
    kind.__name__: kind
    for kind in (ArtifactError, ClusterError, DataError, SpecError, TrainingError)
}
PATIENCE_S = 10.0
RESERVED = "reserved"
"""A message with the id of the placement group of a run's workers, each time they start."""


class Listener(Protocol):
    """Hears how a run goes, in the process that launched it."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        """The rows were read and counted."""
        ...

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        ...

    def epoch(self, record: Record) -> None:
        """An epoch ended."""
        ...


@ray.remote(num_cpus=0)
class Board:
    """Messages in the order they came, and the error that no restart would mend, if any."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._failure: tuple[str, str] | None = None

    def post(self, kind: str, payload: Any) -> None:
        """Leave a message."""
        self._messages.append((kind, payload))

    def since(self, seen: int) -> list[tuple[str, Any]]:
        """Messages after the first `seen`."""
        return self._messages[seen:]

    def fail(self, kind: str, text: str) -> None:
        """Leave an error; the first one counts."""
        self._failure = self._failure or (kind, text)

    def failure(self) -> tuple[str, str] | None:
        """The error, as the name of its type and its words."""
        return self._failure


@dataclass(frozen=True)
class Line:
    """A worker's line to the board."""

    board: Any

    def tell(self, kind: str, payload: Any) -> None:
        """Post and do not wait: training never depends on who listens."""
        self.board.post.remote(kind, payload)

    def fail(self, error: HourglassError) -> None:
        """Leave `error` before this process may end."""
        with contextlib.suppress(ray.exceptions.RayError):
            failed = self.board.fail.remote(type(error).__name__, str(error))
            ray.get(failed, timeout=PATIENCE_S)

    def failure(self) -> HourglassError | None:
        """The error that ended the run; also all that this process posted has arrived then."""
        try:
            found = ray.get(self.board.failure.remote(), timeout=PATIENCE_S)
        except ray.exceptions.RayError:
            return None
        return KINDS.get(found[0], HourglassError)(found[1]) if found else None


class Listening:
    """A board for the length of a block, whose messages go to the listener.

    `reserved` hears the id of the workers' placement group.
    """

    def __init__(self, listener: Listener, reserved: Callable[[str], None] | None = None) -> None:
        self._listener, self._reserved = listener, reserved
        self._board = Board.remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._seen = 0
        self._heard: set[tuple[float | None, float]] = set()

    def __enter__(self) -> Line:
        self._thread.start()
        return Line(self._board)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(PATIENCE_S)
        ray.kill(self._board)

    def _listen(self) -> None:
        while not self._done.wait(0.2):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        try:
            messages = ray.get(self._board.since.remote(self._seen), timeout=PATIENCE_S)
        except ray.exceptions.RayError:
            return
        self._seen += len(messages)
        for kind, payload in messages:
            if kind == "epoch":
                self._epoch(payload)
            elif kind == "resumed":
                self._listener.note(_resumed(payload))
                for record in payload["history"]:
                    self._epoch(record)
            elif kind == RESERVED:
                if self._reserved:
                    self._reserved(payload)
            else:
                self._listener.note(str(payload))

    def _epoch(self, record: Record) -> None:
        which = record.get("member"), record["epoch"]
        if which not in self._heard:  # a restarted worker tells its history again
            self._heard.add(which)
            self._listener.epoch(record)


def _resumed(position: dict[str, Any]) -> str:
    """Where a run, or an ensemble's member, goes on."""
    whose = f"member {position['member']:g}: " if "member" in position else ""
    if position["done"]:
        return f"{whose}its {position['epoch']} epochs were done before"
    return f"{whose}resumed at step {position['step']} (epoch {position['epoch'] + 1})"
