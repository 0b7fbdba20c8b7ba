"""The event channel from the workers of a run to the process that launched it.

`ray.train.report` waits for every worker and for the controller's next poll, and a metric without a
checkpoint does not survive it. An event channel accepts events at any time.

No event is lost when a process dies. A call of `post` returns once the subscriber has the event; until
then Ray retries it, on a restarted channel if need be. Events that a worker could not deliver in the end
are its return value.
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

ERROR_TYPES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, HourglassError)
}
TIMEOUT_S = 10.0
"""How long to wait for a channel that Ray restarts."""
POLL_S = 1.0
"""How long `take` waits for an event before it returns an empty list."""
MAX_PENDING = 100
"""Unanswered calls of one publisher; the actor accepts 1,000 in all."""
RESERVED = "reserved"
"""Event: the id of the placement group of the workers, sent each time they start."""
FAILED = "failed"
"""Event: an error that a restart would not cure, as the name of its type and its message."""
QUERY = "query"
"""Event without content, sent for the answer to it."""

EventId = tuple[str, int]
"""The publisher, and how many events it had sent before."""
Event = tuple[EventId, str, Any]


class Listener(Protocol):
    """Follows the progress of a run in the process that launched it."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        """The rows were read and counted."""
        ...

    def note(self, text: str) -> None:
        """A message for the user."""
        ...

    def epoch(self, record: Record) -> None:
        """An epoch ended."""
        ...


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class EventChannel:
    """Events that the subscriber does not have yet; Ray posts them again after a restart."""

    def __init__(self) -> None:
        self._events: dict[EventId, Event] = {}
        self._answers: dict[EventId, asyncio.Future[Any]] = {}
        self._arrived = asyncio.Event()

    async def post(self, event: Event) -> Any:
        """Returns when the subscriber has the event, with the error that ended the run, if any."""
        number = event[0]
        self._events[number] = event
        answer = self._answers.setdefault(number, asyncio.get_running_loop().create_future())
        self._arrived.set()
        return await answer

    async def take(self, received: Collection[EventId], failure: Any, wait_s: float) -> list[Event]:
        """All events except those `received`, whose calls of `post` return `failure`."""
        for number in received:
            if self._events.pop(number, None):
                self._answers.pop(number).set_result(failure)
        if not self._events:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), wait_s)
            except TimeoutError:
                return []
        return list(self._events.values())


class Publisher:
    """Sends the events of one process, and keeps those that the subscriber does not have yet."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._id, self._count = secrets.token_hex(8), 0
        self._queued: list[Event] = []
        self._posted: dict[Any, Event] = {}
        self._lost: list[Event] = []
        self._failure: Any = None

    def __reduce__(self) -> tuple[type["Publisher"], tuple[Any]]:
        """Each worker numbers its own events."""
        return Publisher, (self._channel,)

    def send(self, kind: str, payload: Any) -> None:
        """Post an event without waiting: training never waits for the subscriber."""
        self._queued.append(((self._id, self._count), kind, payload))
        self._count += 1
        self._post()

    def fail(self, error: HourglassError) -> None:
        """Deliver `error` before this process may end; the first error counts."""
        self.send(FAILED, (type(error).__name__, str(error)))
        self._flush()

    def failure(self) -> HourglassError | None:
        """The error that ended the run, if the subscriber has received one."""
        self.send(QUERY, None)
        self._flush()
        return error_of(self._failure)

    def undelivered(self) -> list[Event]:
        """Events that the subscriber does not have when this process ends, for it to return."""
        self._flush()
        return sorted([*self._lost, *self._posted.values(), *self._queued], key=_event_id)

    def _flush(self) -> None:
        """Wait until the subscriber has every event, TIMEOUT_S at most."""
        end = time.monotonic() + TIMEOUT_S
        while self._posted and (left := end - time.monotonic()) > 0:
            ray.wait([*self._posted], timeout=left)
            self._post()

    def _post(self) -> None:
        """Collect finished calls, then post as many queued events as MAX_PENDING allows."""
        posted = [*self._posted]
        finished = ray.wait(posted, num_returns=len(posted), timeout=0)[0] if posted else []
        for call in finished:
            event = self._posted.pop(call)
            try:
                self._failure = ray.get(call) or self._failure
            except ray.exceptions.RayError:  # the channel cannot be restarted
                self._lost.append(event)
        while self._queued and len(self._posted) < MAX_PENDING:
            event = self._queued.pop(0)
            self._posted[self._channel.post.remote(event)] = event


def _event_id(event: Event) -> EventId:
    return event[0]


class Subscription:
    """A context in which the events of a new channel are passed to the listener.

    `reserved` is called with the id of the workers' placement group. An error that the listener raises
    is raised again at the end of the context, so that it does not cost the events that follow.
    """

    def __init__(self, listener: Listener, reserved: Callable[[str], None] | None = None) -> None:
        self._listener, self._reserved = listener, reserved
        here = ray.get_runtime_context().get_node_id()  # the channel can live as long as this node
        place = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
        self._channel = EventChannel.options(scheduling_strategy=place).remote()  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._delivering = threading.Lock()
        self._next: Counter[str] = Counter()
        self._early: dict[EventId, Event] = {}
        self._failure: Any = None
        self._error: BaseException | None = None
        self._epochs: set[tuple[float | None, float]] = set()

    def __enter__(self) -> Publisher:
        self._thread.start()
        return Publisher(self._channel)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        Publisher(self._channel).send(QUERY, None)  # ends a `take` that waits for an event
        self._thread.join()
        for number in sorted(self._early):  # the events before them died with their publisher
            self._dispatch(*self._early[number][1:])
        ray.kill(self._channel)
        if self._error is not None and kind is None:
            raise self._error

    @property
    def failure(self) -> HourglassError | None:
        """The error that ended the run."""
        return error_of(self._failure)

    def deliver(self, events: Iterable[Event]) -> None:
        """Pass events to the listener, each once and in the order in which they were sent."""
        with self._delivering:
            for number, kind, payload in events:
                if kind == FAILED:
                    self._failure = self._failure or payload
                if number[1] >= self._next[number[0]]:
                    self._early[number] = number, kind, payload
            for publisher in {publisher for publisher, _ in self._early}:
                while event := self._early.pop((publisher, self._next[publisher]), None):
                    self._next[publisher] += 1
                    self._dispatch(*event[1:])

    def _poll(self) -> None:
        received: list[EventId] = []
        while True:
            last = self._done.is_set()
            call = self._channel.take.remote(received, self._failure, 0.0 if last else POLL_S)
            while not ray.wait([call], timeout=TIMEOUT_S)[0]:
                if self._done.is_set():
                    return  # not restarted in time; workers have returned what is undelivered
            try:
                events = ray.get(call)
            except ray.exceptions.RayTaskError as error:  # raised by the channel itself
                self._error = self._error or error
                return  # workers have returned what is undelivered
            except ray.exceptions.RayError:  # the cluster is lost, and so is the run
                return
            self.deliver(events)
            received = [number for number, _, _ in events]
            if last and not events:
                return

    def _dispatch(self, kind: str, payload: Any) -> None:
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
            elif kind not in (FAILED, QUERY):
                self._listener.note(str(payload))
        except (Exception, SystemExit) as error:  # raised at the end of the context
            self._error = self._error or error

    def _epoch(self, record: Record) -> None:
        which = record.get("member"), record["epoch"]
        if which not in self._epochs:  # a restarted worker sends its history again
            self._epochs.add(which)
            self._listener.epoch(record)


def error_of(failure: tuple[str, str] | None) -> HourglassError | None:
    """The error with this type name and this message."""
    return ERROR_TYPES.get(failure[0], HourglassError)(failure[1]) if failure else None


def _resumed(position: dict[str, Any]) -> str:
    """Where a run, or a member of an ensemble, resumes."""
    prefix = f"member {position['member']:g}: " if "member" in position else ""
    if position["done"]:
        return f"{prefix}its {position['epoch']} epochs were done before"
    return f"{prefix}resumed at step {position['step']} (epoch {position['epoch'] + 1})"
