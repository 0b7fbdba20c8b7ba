"""Secrets in files of mode 0600, in a folder that only we can write; refused when exposed."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from hourglass.errors import ClusterError

RAY_TOKEN = "ray_token"
SERVE_TOKEN = "serve_token"


def ensure_token(path: Path) -> str:
    """The token in `path`, made there first when the file is missing. Raises ClusterError."""
    private_folder(path.parent)
    if not path.exists():
        _write_token(path, secrets.token_hex(32))
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in `path`. Raises ClusterError when it is missing, empty or open to others."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise ClusterError(
            f"{path}: no token there; copy the cluster's token into this file (mode 0600), "
            "or run `hourglass cluster start` to make one"
        ) from None
    except OSError as error:
        raise ClusterError(f"{path}: token cannot be read ({error.strerror})") from None
    # Mode and content come from one descriptor: nobody can swap the file between the two looks.
    with os.fdopen(descriptor, "rb") as file:
        _refuse_exposed(path, os.fstat(descriptor))
        content = file.read(4097)
    token = content.decode("ascii", errors="replace").strip()
    if not token:
        raise ClusterError(f"{path}: token file is empty; remove it, and a new token is made")
    if len(content) > 4096 or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(
            f"{path}: not a token; expected one line of at most 4096 printable ASCII characters "
            "without spaces; remove it, and a new token is made"
        )
    return token


def private_folder(folder: Path) -> Path:
    """`folder`, made with mode 0700 when missing. Raises ClusterError when it is another user's.

    An existing folder of ours keeps its readers and loses foreign writers: who can write a
    folder can swap the token inside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # what is there is looked at below
        folder.mkdir(mode=0o700)
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise ClusterError(f"{folder}: expected a folder, found a file; move it away")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise ClusterError(
            f"{folder}: belongs to user {found.st_uid}, not to you ({os.geteuid()}); "
            "set HOURGLASS_HOME or HOURGLASS_TEMP_DIR to a folder of your own"
        )
    if found.st_mode & stat.S_ISVTX:
        raise ClusterError(
            f"{folder}: shared by all users of this machine; set HOURGLASS_HOME or "
            "HOURGLASS_TEMP_DIR to a folder of your own, such as one below it"
        )
    if found.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    return folder


def _refuse_exposed(path: Path, found: os.stat_result) -> None:
    """Raise ClusterError unless the open token file is a plain file that only its owner can use."""
    if not stat.S_ISREG(found.st_mode):
        raise ClusterError(f"{path}: expected a file with a token, found something else")
    if found.st_mode & 0o077:
        raise ClusterError(
            f"{path}: mode {stat.S_IMODE(found.st_mode):04o} lets other users at the token, "
            f"allowed is 0600; run `chmod 600 {path}`, or remove the file if others may have "
            "read it, and a new token is made"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise ClusterError(
            f"{path}: belongs to user {found.st_uid}, not to you ({os.geteuid()}); "
            "remove it, and a new token is made"
        )


def _write_token(path: Path, token: str) -> None:
    """Write `token` under a name that never holds a part of it; the first of two writers wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # another writer's token is the token
            os.link(temporary, path)
    finally:
        temporary.unlink()
