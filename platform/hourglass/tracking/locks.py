"""Advisory locks: files, which the kernel frees when their holder dies, and leased objects in S3."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from hourglass import storage
from hourglass.errors import DataError
from hourglass.process import interrupt_main

LEASE_S = 60.0
"""Seconds for which a lock object is valid after its last renewal."""
RENEW_S = 15.0
TRIES, PAUSE_S = 8, 0.25
"""How often a lock is asked for while S3 contradicts itself, and the pause between."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

Owner = dict[str, str]


def flock(descriptor: int, how: int, path: Path) -> None:
    """Lock the open file at `path`; on a file system without locks, continue with a warning.

    Raises: BlockingIOError when another process holds it and `how` is not to wait.
    """
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent}: this file system does not support locks ({error.strerror}), so nothing "
            "keeps a second command from the same work; run only one at a time",
            stacklevel=2,
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another holder."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        flock(descriptor, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does; yields whether it is ours.

    The holder may remove the file: whoever locked a removed one tries again on the new one.
    """
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
            except BlockingIOError:
                yield False
                return
            if os.fstat(descriptor).st_nlink:
                yield True
                return
        finally:
            os.close(descriptor)


@contextmanager
def alone(uri: str, doing: str, instead: str) -> Iterator[None]:
    """Hold the lock `uri`, a path or an S3 object, during a block.

    `doing` describes what the other holder does, `instead` the alternative to waiting. Raises: DataError
    naming the process that holds it, or that takes it over during the block; WriteError.
    """
    local = storage.is_local(uri)
    with _locked_file(uri) if local else _leased(uri) as other:
        if other is not None:
            raise DataError(f"{doing}{other}; run this one when that has ended, or {instead}")
        yield


def beside(folder: str) -> str:
    """The path of a folder's lock: next to it, since the folder may be replaced."""
    parent, _, name = folder.rstrip("/").rpartition("/")
    return f"{parent}/.{name}.lock"


@contextmanager
def _locked_file(uri: str) -> Iterator[str | None]:
    """Hold the lock file if nobody else does; yields a description of another holder."""
    path = Path(uri.removeprefix("file://"))
    with contextlib.ExitStack() as stack:
        with storage.writing(uri):
            storage.make_folder(path.parent)
            ours = stack.enter_context(try_locked(path))
        if not ours:
            yield _read_owner(path)
            return
        with contextlib.suppress(OSError):  # nobody needs it, and the disk may be full
            path.write_text(json.dumps(_owner()))
        try:
            yield None
        finally:
            with contextlib.suppress(OSError):  # its name does not hold it, the open file does
                path.unlink(missing_ok=True)


def _read_owner(path: Path) -> str:
    try:
        return f" ({_who(json.loads(path.read_text()))})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it has not written it yet


@contextmanager
def _leased(uri: str) -> Iterator[str | None]:
    """Hold the object `uri` if nobody else does; yields a description of another holder."""
    lease = _Lease(uri)
    with storage.writing(uri):
        other = lease.take()
    if other is not None:
        yield other
        return
    here = threading.current_thread() is threading.main_thread()
    stop = interrupt_main if here else None
    renewing = threading.Thread(target=lease.renew, args=(stop,), daemon=True)
    renewing.start()
    try:
        try:
            yield None
        finally:
            lease.end()
            renewing.join()
            lease.give_back()
    except KeyboardInterrupt:
        if not lease.lost:
            raise
    if lease.lost:
        raise DataError(lease.lost)


class _Lease:
    """An object that names its holder, written by conditional puts.

    Its age is measured with the clock of S3 alone. Each put has new content, and so a new ETag.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._fs, path = storage.filesystem(uri)
        bucket, key, _ = self._fs.split_path(path)
        self._where = {"Bucket": bucket, "Key": key}
        self._owner = {**_owner(), "token": secrets.token_hex(8)}
        self._etag, self._put_at = "", 0.0
        self._ended, self._stopping = threading.Event(), threading.Lock()
        self.lost = ""
        """A message, once another process may have held it."""

    def take(self) -> str | None:
        """Put it where there is none, or one that has run out; who holds it otherwise.

        Raises: OSError when S3 keeps refusing what nobody holds.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S)
            found = self._look()
            if found is None:
                condition = {"IfNoneMatch": "*"}
            else:
                owner, etag, age_s = found
                if owner.get("token") == self._owner["token"]:  # the answer to our put was lost
                    self._etag = etag
                    return None
                left = LEASE_S - age_s
                if left > 0:
                    return f" ({_who(owner)}; should it have been killed, this is free in {left:.0f} s)"
                condition = {"IfMatch": etag}
            if self._put(condition):
                return None
        raise OSError(errno.EBUSY, f"S3 refused this lock {TRIES} times, although nobody holds it")

    def renew(self, stop: Callable[[], None] | None) -> None:
        """Keep it until the `end`; `stop` is called when another process has it, or may have had it."""
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(Exception):  # S3 is out of reach: again the next time
                self.lost = self._keep()
            if self.lost:
                with self._stopping:
                    if stop is not None and not self._ended.is_set():
                        stop()
                return

    def _keep(self) -> str:
        """Renew it; returns why that is impossible if another process has taken it over."""
        if self._put({"IfMatch": self._etag}):
            return ""
        found = self._look()
        if found is not None and found[0].get("token") == self._owner["token"]:
            self._etag = found[1]  # the answer to our put was lost
            return ""
        if found is None and time.time() - self._put_at < LEASE_S:  # somebody removed it
            self._put({"IfNoneMatch": "*"})
            return ""
        other = "another process" if found is None else _who(found[0])
        return (
            f"{self._uri}: this lock could not be kept (was this machine asleep, or S3 out of reach?), and "
            f"{other} has taken it over; this command was stopped, so that not both write. Run it again "
            "when that has ended"
        )

    def end(self) -> None:
        """Renew it no more; nothing is stopped from here on."""
        with self._stopping:
            self._ended.set()

    def give_back(self) -> None:
        """Remove it if it is ours; where that fails, it runs out."""
        with contextlib.suppress(Exception):
            found = self._look()
            if found and found[0].get("token") == self._owner["token"]:
                self._fs.call_s3("delete_object", **self._where)

    def _look(self) -> tuple[Owner, str, float] | None:
        """Who holds it, its ETag, and how many seconds ago it was put."""
        try:
            head = self._fs.call_s3("head_object", **self._where)
        except FileNotFoundError:
            return None
        now = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        put = head["LastModified"].timestamp()
        age_s = (parsedate_to_datetime(now).timestamp() if now else time.time()) - put
        return head["Metadata"], head["ETag"], age_s

    def _put(self, condition: dict[str, Any]) -> bool:
        """Put it if the condition holds; a store that knows no conditions just takes it."""
        content = {"Body": secrets.token_hex(8).encode(), "Metadata": self._owner}
        began = time.time()
        try:
            put = self._fs.call_s3("put_object", **self._where, **content, **condition)
        except OSError as error:
            answer = getattr(error.__cause__, "response", None) or {}
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            gone = status == 404 and "IfMatch" in condition
            if gone or status in (409, 412):
                return False
            if error.errno != errno.ENOSYS:
                raise
            put = self._fs.call_s3("put_object", **self._where, **content)
        self._etag, self._put_at = put["ETag"], began
        return True


def _owner() -> Owner:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"pid": str(os.getpid()), "host": socket.gethostname(), "since": since}


def _who(owner: Owner) -> str:
    return f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"


def private_folder(path: Path) -> Path:
    """Create `path` for this user alone, whatever the umask is."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
