"""Checkpoints, written in two phases: the state, then a COMMIT record, without which it does not count.

checkpoints/00000420.3f9a1c2e/state.safetensors
checkpoints/00000420.3f9a1c2e/COMMIT.json     position, hashes, what run and data it belongs to
checkpoints/member-2/00000420.8e2d77b0/...    those of an ensemble's second member, and so on
"""

import contextlib
import errno
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from hourglass import storage
from hourglass.artifact import parse_tensors
from hourglass.errors import ArtifactError, DataError, TrainingError
from hourglass.training.collective import ProcessGroup, SingleProcessGroup
from hourglass.training.state import State

STATE = "state.safetensors"
COMMIT = "COMMIT.json"
KEPT = 2
NAME = re.compile(r"\d{8,}\.[0-9a-f]{8}")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Checkpoints:
    """The committed checkpoints of one run; the newest and the one before it are kept.

    `run` names everything that decides the weights, None where any will do; `data` is the manifest's
    digest.
    """

    uri: str
    run: str | None
    data: str
    workers: int
    parent: "Checkpoints | None" = None
    """Checkpoints of the run, with other hyperparameters, that this one continues."""
    again: str = "the same command"
    """The command that resumes from them."""

    def of(self, member: int) -> "Checkpoints":
        """Those of an ensemble member, counted from 1; the first uses the folder of a single run."""
        if member == 1:
            return self
        name = f"member-{member}"
        run = None if self.run is None else f"{self.run}, {name}"
        return replace(self, uri=storage.join(self.uri, name), run=run)

    def save(self, state: State, group: ProcessGroup | None = None) -> None:
        """Commit `state`, then remove older checkpoints; called on every worker, written by the first.

        Raises: TrainingError on every worker when a number is not finite or a write fails; earlier
        checkpoints stay.
        """
        group = group or SingleProcessGroup()
        tensors, position = state.tensors(), state.position(group)
        _require_finite(state.step, tensors, position)
        problem = self._write(state.step, tensors, position) if group.rank == 0 else None
        problem = group.share(problem)[0]
        if problem:
            raise TrainingError(
                f"stopped at step {state.step}: the checkpoint was not written, {problem}. "
                f"The last checkpoint is kept; free some space and run {self.again} to resume"
            )

    def newest(self, warn: Callable[[str], None]) -> str | None:
        """The newest intact checkpoint; calls `warn` for each damaged one, which is skipped.

        Raises: DataError when it is of other data or another run, ReadError when one cannot be read now:
        resuming without it would repeat its epochs.
        """
        for name in reversed(self._names()):
            try:
                self.load(name)
            except ArtifactError as error:
                warn(f"skipped checkpoint {error}")
            else:
                return name
        return None

    def committed(self) -> list[str]:
        """Names of the committed ones, oldest first; none is verified."""
        return [name for name in self._names() if self._is_committed(name)]

    def keep_newest(self) -> None:
        """Remove all but the newest committed one.

        The one before it only saves time if the newest is damaged, which is not worth its space for a run
        that may never be resumed.
        """
        self._keep(self.committed()[-1:])

    def remove(self) -> None:
        """Remove all of them, and the folder; if interrupted, the rest is intact or does not count.

        Raises: WriteError.
        """
        self._keep(())
        storage.remove(self.uri)

    def start(self, warn: Callable[[str], None]) -> "tuple[Checkpoints, str] | None":
        """Where the run resumes: its own newest checkpoint, else its parent's."""
        name = self.newest(warn)
        if name is not None:
            return self, name
        return self.parent.start(warn) if self.parent else None

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and position of one checkpoint, verified.

        Raises: ArtifactError when it is damaged, DataError when it is of other data or another run,
        ReadError when it cannot be read now.
        """
        position, listed = self._record(name)
        path = storage.join(self.uri, name, STATE)
        try:
            content = storage.read(path)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: cannot be read (No such file or directory)") from None
        if len(content) != listed["bytes"]:
            raise ArtifactError(f"{path}: {len(content)} bytes, committed were {listed['bytes']}")
        if hashlib.sha256(content).hexdigest() != listed["sha256"]:
            raise ArtifactError(f"{path}: not what was committed (SHA-256)")
        return parse_tensors(path, content), position

    def check(self) -> None:
        """Reject checkpoints of other data or another run before any worker starts.

        Raises: DataError, ReadError.
        """
        for name in self._names():
            try:
                self._record(name)
            except ArtifactError:
                continue  # `newest` warns of it

    def _record(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The position, and the size and hash of the state file. Raises as `load`."""
        path = storage.join(self.uri, name, COMMIT)
        try:
            record = json.loads(storage.read(path))
            body = record["commit"]
            if hashlib.sha256(_text(body)).hexdigest() != record["sha256"]:
                raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{path}: missing, it was never committed") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ArtifactError(f"{path}: damaged") from None
        if body["data"] != self.data:
            raise DataError(
                f"{path}: the shards changed since this run began (manifest {body['data'][:12]} "
                f"then, {self.data[:12]} now); retrain with --fresh"
            )
        if self.run is not None and body["run"] != self.run:
            raise DataError(f"{path}: belongs to run {body['run']}, not to {self.run}")
        return body["position"], body["files"][STATE]

    def _write(self, step: int, tensors: dict[str, Tensor], position: dict[str, Any]) -> str | None:
        """Write both phases, then prune; returns the error message, for all workers to raise."""
        content = save_tensors(tensors)
        name = f"{step:08d}.{secrets.token_hex(4)}"
        folder = storage.join(self.uri, name)
        commit = {
            "run": self.run,
            "data": self.data,
            "workers": self.workers,
            "position": position,
            "files": {
                STATE: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            },
        }
        record = {"commit": commit, "sha256": hashlib.sha256(_text(commit)).hexdigest()}
        try:
            storage.write(storage.join(folder, STATE), content)
            storage.write(storage.join(folder, COMMIT), _text(record))
        except OSError as error:
            return _problem(error, folder, len(content))
        with contextlib.suppress(OSError):  # it is committed; the next save prunes again
            self._prune(name)
        return None

    def _prune(self, newest: str) -> None:
        """Keep `newest`, the committed ones before it, and intact ones of later steps."""
        step = _step(newest)
        older = [name for name in self._names() if _step(name) < step and self._is_committed(name)]
        later = [name for name in self._names() if _step(name) >= step and name != newest]
        self._keep([newest, *older[-(KEPT - 1) :], *filter(self._is_intact, later)])

    def _keep(self, kept: Sequence[str]) -> None:
        """Remove the others, COMMIT first, so that a partly removed one does not count."""
        for name in self._names():
            if name not in kept:
                storage.remove(storage.join(self.uri, name, COMMIT))
                storage.remove(storage.join(self.uri, name))

    def _is_intact(self, name: str) -> bool:
        try:
            self.load(name)
        except ArtifactError:
            return False
        except DataError:
            pass  # it belongs to another run
        return True

    def _is_committed(self, name: str) -> bool:
        return storage.exists(storage.join(self.uri, name, COMMIT))

    def _names(self) -> list[str]:
        return [name for name in storage.names(self.uri) if NAME.fullmatch(name)]


def _text(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, allow_nan=False).encode()


def _step(name: str) -> int:
    return int(name.partition(".")[0])


def _require_finite(step: int, tensors: dict[str, Tensor], position: dict[str, Any]) -> None:
    """Raise TrainingError for a number that is not finite: on all workers, which have the same numbers."""
    bad = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    bad += [
        f"sum of {name} on worker {rank}"
        for rank, sums in enumerate(position["sums"])
        for name, value in sums.items()
        if value - value != 0.0
    ]
    if bad:
        raise TrainingError(
            f"stopped at step {step}: {bad[0]} is NaN or infinite; not committed. The last "
            "checkpoint is kept; lower the learning rate or check the rows"
        )


def _problem(error: OSError, folder: str, needed: int) -> str:
    if error.errno not in FULL or not storage.is_local(folder):
        return f"{folder}: {error.strerror or error}"
    path = Path(folder.removeprefix("file://"))
    there = next(place for place in path.parents if place.is_dir())
    return f"disk full: needed {needed} bytes, had {shutil.disk_usage(there).free}, {folder}"
