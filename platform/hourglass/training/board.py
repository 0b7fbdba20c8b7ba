"""The board: where workers leave words for the process that launched the run, which listens.

`ray.train.report` waits for every worker and for the controller's next look, and a metric without a
checkpoint does not survive it; a board takes words at any time.

No word is lost, whoever dies. A message is done with when the listening process has it: until then the
call that left it has not returned, and Ray makes it again on a board that it had to start anew. What a
worker could not get rid of in the end is what it returns.
"""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hourglass import errors
from hourglass.config.train import TrainJob
from hourglass.errors import HourglassError
from hourglass.training.state import Record

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, HourglassError)
}
PATIENCE_S = 10.0
"""How long anybody waits for a board that Ray starts anew."""
LOOK_S = 1.0
"""How long the board keeps a listener waiting that it has no message for."""
MOST = 100
"""Calls of one worker that wait for a slow listener; a board takes 1,000."""
RESERVED = "reserved"
"""A message with the id of the placement group of a run's workers, each time they start."""
FAILED = "failed"
"""A message with an error that no restart would mend: the name of its type, and its words."""
ASKED = "asked"
"""A message that is left for its answer."""

Number = tuple[str, int]
"""Of a message: who left it, and how many it had left before."""
Message = tuple[Number, str, Any]


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


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Board:
    """Messages that the listener does not have yet; one that was lost gets them again from Ray."""

    def __init__(self) -> None:
        self._messages: dict[Number, Message] = {}
        self._answers: dict[Number, asyncio.Future[Any]] = {}
        self._came = asyncio.Event()

    async def post(self, message: Message) -> Any:
        """Leave a message; returns when the listener has it, with the error that ended the run."""
        number = message[0]
        self._messages[number] = message
        answer = self._answers.setdefault(number, asyncio.get_running_loop().create_future())
        self._came.set()
        return await answer

    async def take(self, had: Collection[Number], failure: Any, wait_s: float) -> list[Message]:
        """All messages but those that the listener `had`, which are answered with the `failure`."""
        for number in had:
            if self._messages.pop(number, None):
                self._answers.pop(number).set_result(failure)
        if not self._messages:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), wait_s)
            except TimeoutError:
                return []
        return list(self._messages.values())


class Line:
    """A process's line to the board. It keeps what the listener does not have."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._who, self._count = secrets.token_hex(8), 0
        self._left: list[Message] = []
        self._posted: dict[Any, Message] = {}
        self._undelivered: list[Message] = []
        self._failure: Any = None

    def __reduce__(self) -> tuple[type["Line"], tuple[Any]]:
        """A worker numbers its own messages."""
        return Line, (self._board,)

    def tell(self, kind: str, payload: Any) -> None:
        """Post and do not wait: training never depends on who listens."""
        self._left.append(((self._who, self._count), kind, payload))
        self._count += 1
        self._post()

    def fail(self, error: HourglassError) -> None:
        """Leave `error` before this process may end; the first one counts."""
        self.tell(FAILED, (type(error).__name__, str(error)))
        self._settle()

    def failure(self) -> HourglassError | None:
        """The error that ended the run, if the listener has heard of one."""
        self.tell(ASKED, None)
        self._settle()
        return error_of(self._failure)

    def kept(self) -> list[Message]:
        """What the listener does not have when this process ends, for it to return."""
        self._settle()
        return sorted([*self._undelivered, *self._posted.values(), *self._left], key=_number)

    def _settle(self) -> None:
        """Wait until the listener has everything, but not for ever."""
        end = time.monotonic() + PATIENCE_S
        while self._posted and (left := end - time.monotonic()) > 0:
            ray.wait([*self._posted], timeout=left)
            self._post()

    def _post(self) -> None:
        """See what has arrived, and post what may be."""
        posted = [*self._posted]
        arrived = ray.wait(posted, num_returns=len(posted), timeout=0)[0] if posted else []
        for call in arrived:
            message = self._posted.pop(call)
            try:
                self._failure = ray.get(call) or self._failure
            except ray.exceptions.RayError:  # the board is gone for good; `kept` has it
                self._undelivered.append(message)
        while self._left and len(self._posted) < MOST:
            message = self._left.pop(0)
            self._posted[self._board.post.remote(message)] = message


def _number(message: Message) -> Number:
    return message[0]


class Listening:
    """A board for the length of a block, whose messages go to the listener.

    `reserved` hears the id of the workers' placement group. An error of the listener's own is raised at
    the end of the block: until then it must not cost anybody the messages that follow.
    """

    def __init__(self, listener: Listener, reserved: Callable[[str], None] | None = None) -> None:
        self._listener, self._reserved = listener, reserved
        here = ray.get_runtime_context().get_node_id()  # as long as we are, the board can be
        place = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
        self._board = Board.options(scheduling_strategy=place).remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._hearing = threading.Lock()
        self._next: Counter[str] = Counter()
        self._early: dict[Number, Message] = {}
        self._failure: Any = None
        self._error: BaseException | None = None
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
        Line(self._board).tell(ASKED, None)  # whoever waits for a message looks up
        self._thread.join()
        for number in sorted(self._early):  # those before them died with who left them
            self._pass_on(*self._early[number][1:])
        ray.kill(self._board)
        if self._error is not None and kind is None:
            raise self._error

    @property
    def failure(self) -> HourglassError | None:
        """The error that ended the run."""
        return error_of(self._failure)

    def hear(self, messages: Iterable[Message]) -> None:
        """Pass messages on, each once and in the order of who left them."""
        with self._hearing:
            for number, kind, payload in messages:
                if kind == FAILED:
                    self._failure = self._failure or payload
                if number[1] >= self._next[number[0]]:
                    self._early[number] = number, kind, payload
            for who in {who for who, _ in self._early}:
                while message := self._early.pop((who, self._next[who]), None):
                    self._next[who] += 1
                    self._pass_on(*message[1:])

    def _listen(self) -> None:
        had: list[Number] = []
        while True:
            last = self._done.is_set()
            call = self._board.take.remote(had, self._failure, 0.0 if last else LOOK_S)
            while not ray.wait([call], timeout=PATIENCE_S)[0]:
                if self._done.is_set():
                    return  # it is not started in time; workers have returned what they kept
            try:
                messages = ray.get(call)
            except ray.exceptions.RayTaskError as error:  # of the board's own
                self._error = self._error or error
                return  # workers have returned what they kept
            except ray.exceptions.RayError:  # the cluster is lost, and so is the run
                return
            self.hear(messages)
            had = [number for number, _, _ in messages]
            if last and not messages:
                return

    def _pass_on(self, kind: str, payload: Any) -> None:
        try:
            if kind == "epoch":
                self._epoch(payload)
            elif kind == "resumed":
                self._listener.note(_resumed(payload))
                for record in payload["history"]:
                    self._epoch(record)
            elif kind == RESERVED:
                if self._reserved:
                    self._reserved(payload)
            elif kind not in (FAILED, ASKED):
                self._listener.note(str(payload))
        except (Exception, SystemExit) as error:  # raised at the end of the block
            self._error = self._error or error

    def _epoch(self, record: Record) -> None:
        which = record.get("member"), record["epoch"]
        if which not in self._heard:  # a restarted worker tells its history again
            self._heard.add(which)
            self._listener.epoch(record)


def error_of(failure: tuple[str, str] | None) -> HourglassError | None:
    """The error with the name of this type and these words."""
    return KINDS.get(failure[0], HourglassError)(failure[1]) if failure else None


def _resumed(position: dict[str, Any]) -> str:
    """Where a run, or an ensemble's member, goes on."""
    whose = f"member {position['member']:g}: " if "member" in position else ""
    if position["done"]:
        return f"{whose}its {position['epoch']} epochs were done before"
    return f"{whose}resumed at step {position['step']} (epoch {position['epoch'] + 1})"
