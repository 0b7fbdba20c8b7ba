"""Advisory locks between processes of one machine; the kernel drops one when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another holder."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
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
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if os.fstat(descriptor).st_nlink:
                yield True
                return
        finally:
            os.close(descriptor)


def private_folder(path: Path) -> Path:
    """Create `path` for this user alone, whatever the umask says."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
