"""Bytes on a local disk or in S3, written so that a name either holds all of its bytes or does not exist."""

import errno
import functools
import os
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from hourglass.errors import DataError, NotDurableError, ReadError, WriteError, first_line
from hourglass.settings import Settings

WAIT_S = 10.0
"""After which a read or write that waits for S3 says so."""
S3FS_TRIES = 2
"""Of s3fs, around botocore's: the only ones where an answer stops halfway."""
UNSYNCED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""Of a folder that one may write to but not read, and of disks that sync no folders."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of `uri` and the path inside it. Raises DataError for other schemes."""
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme not in ("file", "s3"):
        raise DataError(
            f"{uri}: scheme '{scheme}://' is not supported; use a path or s3://bucket/key"
        )
    if scheme == "file":
        fs, path = fsspec.core.url_to_fs(uri)
        return fs, path
    fs, path = fsspec.core.url_to_fs(uri, config_kwargs=_s3_limits())
    fs.retries = S3FS_TRIES
    return fs, path


def _s3_limits() -> dict[str, Any]:
    """Botocore's settings of how long to wait for S3, and how often to ask."""
    settings = Settings()
    return {
        "connect_timeout": settings.s3_connect_timeout_s,
        "read_timeout": settings.s3_read_timeout_s,
        "retries": {"total_max_attempts": settings.s3_attempts},
        "http_session_cls": _session(settings.s3_total_timeout_s),
    }


@functools.cache
def _session(total_s: float) -> type:
    """Sessions in which a request ends in time, whatever the endpoint keeps sending."""
    from aiobotocore.httpsession import AIOHTTPSession
    from aiohttp import ClientTimeout

    class Session(AIOHTTPSession):  # type: ignore[misc]
        _timeout: ClientTimeout

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            wait = self._timeout
            self._timeout = ClientTimeout(
                total=total_s, sock_connect=wait.sock_connect, sock_read=wait.sock_read
            )

    return Session


def trouble(error: BaseException | None) -> str | None:
    """A message about what kept S3 from responding; None for other kinds of errors."""
    if isinstance(error, IndexError):  # s3fs trips over errors without arguments, as timeouts are
        error = error.__context__
    if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "fsspec")):
        return None
    slow = "Timeout" in type(error).__name__
    usual = "the answer stopped halfway" if slow else type(error).__name__
    detail = (str(error).splitlines() or [usual])[0][:1000]
    if slow:
        return (
            f"S3 did not answer in time ({detail}); check AWS_ENDPOINT_URL and the network, or wait "
            "longer (HOURGLASS_S3_READ_TIMEOUT_S)"
        )
    return (
        f"S3 cannot be reached ({detail}); check AWS_ENDPOINT_URL, the credentials and the region"
    )


@contextmanager
def _patient(uri: str) -> Iterator[None]:
    """A context that says so while S3 keeps it waiting."""
    if is_local(uri):
        yield
        return
    timer = threading.Timer(WAIT_S, _say_waiting, (uri,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_waiting(uri: str) -> None:
    # What a worker of Ray prints on its standard output reaches the user, its errors do not.
    where = sys.stdout if "RAY_RAYLET_PID" in os.environ else sys.stderr
    limit = Settings().s3_total_timeout_s
    print(
        f"{uri}: S3 has not answered for {WAIT_S:g} s; still waiting, at most {limit:g} s for a request",
        file=where,
        flush=True,
    )


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raise errors of disks and S3 as a ReadError that names `uri`, except for missing files.

    Raises: ReadError, FileNotFoundError, NotADirectoryError.
    """
    try:
        with _patient(uri):
            yield
    except (FileNotFoundError, NotADirectoryError, ReadError):
        raise
    except Exception as error:
        reason = trouble(error)
        if reason is None and not isinstance(error, OSError):
            raise
        if isinstance(error, PermissionError):
            reason = "permission denied" + ("" if is_local(uri) else "; check the credentials")
        if reason is None and is_local(uri):
            reason = f"cannot be read ({first_line(error)})"
        if reason is None:
            reason = (
                f"S3 refused ({first_line(error)}); run again later, or check AWS_ENDPOINT_URL, the "
                "credentials and the region"
            )
        raise ReadError(getattr(error, "errno", None) or errno.EIO, reason, uri) from None


def is_local(uri: str) -> bool:
    """True when `uri` is on this machine's file system."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *parts])


def above(uri: str) -> Iterator[str]:
    """`uri`, absolute and without links, and every folder above it, the nearest first."""
    if is_local(uri):
        place = Path(os.path.realpath(uri.removeprefix("file://")))
        yield from map(str, (place, *place.parents))
        return
    scheme, _, path = uri.rstrip("/").partition("://")
    steps = path.split("/")
    for count in range(len(steps), 0, -1):
        yield f"{scheme}://{'/'.join(steps[:count])}"


def read(uri: str) -> bytes:
    """All bytes at `uri`. Raises FileNotFoundError, ReadError."""
    with reading(uri):
        if is_local(uri):
            return Path(uri.removeprefix("file://")).read_bytes()
        fs, path = filesystem(uri)
        fs.invalidate_cache()
        content: bytes = fs.cat_file(path)
        return content


def write(uri: str, content: bytes) -> None:
    """Write `content` durably and atomically: temporary file, fsync, rename, fsync of the folder.

    On S3 a PUT is atomic already. Raises WriteError (disk full, read only), and what was there is kept;
    NotDurableError once the new is there.
    """
    with writing(uri):
        if not is_local(uri):
            fs, path = filesystem(uri)
            fs.pipe_file(path, content)
            return
        target = Path(uri.removeprefix("file://"))
        make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextmanager
def writing(uri: str) -> Iterator[None]:
    """Turn what disks and S3 raise when they refuse to write into a WriteError that names `uri`."""
    try:
        with _patient(uri):
            yield
    except (ReadError, WriteError):
        raise
    except Exception as error:
        s3 = trouble(error)
        if s3 is None and not isinstance(error, OSError):
            raise
        number = getattr(error, "errno", None) or errno.EIO
        first = (str(error).splitlines() or [s3 or "refused"])[0]
        reason = getattr(error, "strerror", None) or first
        raise WriteError(number, reason, uri) from error


def move(uri: str, to: str) -> None:
    """Give the file or folder at `uri` the name `to`: at once on a disk, by copies in S3.

    A file at `to` is replaced. Raises WriteError.
    """
    with writing(to):
        fs, path = filesystem(uri)
        _, target = filesystem(to)
        if is_local(uri):
            make_folder(Path(target).parent)
            os.replace(path, target)
            sync_folder(Path(target).parent)
        else:
            fs.invalidate_cache()
            found = fs.find(path)
            for file in found:
                fs.cp_file(file, target + file[len(path) :])
            fs.rm(found)


@contextmanager
def new_folder(uri: str) -> Iterator[str]:
    """Where to write what is to appear at `uri` as a whole, once the block ends well.

    In S3, and where a folder is there already, that is `uri` itself, and each file is whole.
    """
    if not is_local(uri) or exists(uri):
        yield uri
        return
    target = Path(uri.removeprefix("file://"))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield str(temporary)
        move(str(temporary), uri)
    except WriteError as error:
        raise WriteError(error.errno, error.strerror, uri) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, each of them to survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder`, which is made, survive a power cut, where the disk can do that.

    Raises: NotDurableError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in UNSYNCED:
            return
        raise NotDurableError(error.errno or errno.EIO, error.strerror, str(folder)) from error


def exists(uri: str) -> bool:
    """True when a file or folder is at `uri`. Raises ReadError where nobody can say."""
    with reading(uri):
        if is_local(uri):
            return Path(uri.removeprefix("file://")).exists()
        fs, path = filesystem(uri)
        fs.invalidate_cache()
        return bool(fs.exists(path))


def size(uri: str) -> int:
    """Bytes at `uri`. Raises FileNotFoundError, ReadError."""
    with reading(uri):
        if is_local(uri):
            return Path(uri.removeprefix("file://")).stat().st_size
        fs, path = filesystem(uri)
        fs.invalidate_cache()
        return int(fs.size(path))


def modified_ms(uri: str) -> int:
    """When the file at `uri` was written, in ms since 1970. Raises FileNotFoundError, ReadError."""
    with reading(uri):
        fs, path = filesystem(uri)
        return round(1000 * float(fs.modified(path).timestamp()))


def irregular(path: str) -> str | None:
    """What is wrong with a local file that must be a plain one: a link, a device, a second name."""
    try:
        status = os.lstat(path.removeprefix("file://"))
    except OSError:
        return None  # who reads it says why it cannot be read
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return "has a second name (hard link)" if status.st_nlink > 1 else None


def names(uri: str) -> list[str]:
    """Sorted names directly below the folder `uri`; empty when it does not exist.

    Some writers leave an empty object where a folder would be: it is the folder, not in it. Raises
    ReadError.
    """
    with reading(uri):
        if is_local(uri):
            folder = Path(uri.removeprefix("file://"))
            return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        fs, path = filesystem(uri)
        fs.invalidate_cache()
        if not fs.exists(path):
            return []
        entries = (entry.rstrip("/") for entry in fs.ls(path, detail=False))
        return sorted(entry.rsplit("/", 1)[-1] for entry in entries if entry != path.rstrip("/"))


def remove(uri: str) -> None:
    """Remove the file or folder at `uri`, if it is there. Raises WriteError."""
    fs, path = filesystem(uri)
    with writing(uri):
        fs.invalidate_cache()  # another process may have written it since this one listed the folder
        if fs.exists(path):
            fs.rm(path, recursive=True)
