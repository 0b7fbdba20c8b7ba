"""The outbox of a run: its events, on this machine's disk before they are delivered anywhere.

<root>/outbox/<run>.jsonl    one event per line, appended and synced
<root>/outbox/<run>.done     how many of its bytes are delivered
<root>/outbox/<run>.lock     held by the one process that delivers
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hourglass import storage
from hourglass.tracking.backend import Event
from hourglass.tracking.locks import flock, private_folder

FOLDER = "outbox"


class Outbox:
    """The events of one run, in order, and how far they were delivered."""

    def __init__(self, folder: Path, run_name: str) -> None:
        self.run_name = run_name
        self.path = folder / f"{run_name}.jsonl"
        self.lock = folder / f"{run_name}.lock"
        self._done = folder / f"{run_name}.done"

    @classmethod
    def all(cls, folder: Path) -> list["Outbox"]:
        """Every outbox in `folder`, oldest first."""
        paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        return [cls(folder, path.stem) for path in paths]

    def append(self, kind: str, **fields: Any) -> None:
        """Add one event with the present time. Raises OSError (disk full, read only)."""
        event = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **fields}
        line = json.dumps(event, default=_plain).encode() + b"\n"
        private_folder(self.path.parent)
        while True:
            descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
            try:
                flock(descriptor, fcntl.LOCK_EX, self.path)
                if os.fstat(descriptor).st_nlink == 0:
                    continue  # `clear` removed it between our open and our lock
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                _write(descriptor, b"\n" + line if torn else line)
                os.fsync(descriptor)
                return
            finally:
                os.close(descriptor)

    def pending(self) -> Iterator[tuple[int, Event]]:
        """Events not delivered yet, each with the position to `mark` once it is."""
        position = self.delivered
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written, or cut short by a kill
                position += len(line)
                event = _parse(line)
                if event is not None:
                    yield position, event

    def begin(self) -> Event | None:
        """The `begin` of the next pending event: the last one delivered, else the first there is."""
        if not self.path.exists():
            return None
        found, position, delivered = None, 0, self.delivered
        with open(self.path, "rb") as file:
            for line in file:
                position += len(line)
                if position > delivered and found is not None:
                    break
                event = _parse(line)
                if event is not None and event["kind"] == "begin":
                    found = event
        return found

    @property
    def delivered(self) -> int:
        """Bytes of the outbox that are delivered."""
        try:
            return int(self._done.read_text())
        except (FileNotFoundError, ValueError):
            return 0  # delivering again is harmless, losing an event is not

    def mark(self, position: int) -> None:
        """Record durably that everything before `position` is delivered."""
        storage.write(str(self._done), str(position).encode())

    def clear(self) -> None:
        """Remove the outbox if all of it is delivered and the run has ended; hold `lock`."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            flock(file.fileno(), fcntl.LOCK_EX, self.path)
            lines = file.read().splitlines(keepends=True)
            last = _parse(lines[-1]) if lines else None
            if sum(map(len, lines)) == self.delivered and last and last["kind"] == "end":
                self._done.unlink(missing_ok=True)  # first: alone it would hide the next events
                self.path.unlink(missing_ok=True)
                self.lock.unlink(missing_ok=True)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _plain(value: Any) -> Any:
    """NumPy and torch scalars as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _parse(line: bytes) -> Event | None:
    """The event of a line; None for the torn line of a process that was killed while appending."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None
