"""Tokens in files of mode 0600, in a folder that only the user can write to."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from hourglass.errors import ClusterError

RAY_TOKEN = "ray_token"
SERVE_TOKEN = "serve_token"


def ensure_token(path: Path) -> str:
    """The token in `path`, generated first if the file is missing. Raises ClusterError."""
    private_folder(path.parent)
    if not path.exists():
        write_token(path, secrets.token_hex(32))
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in `path`. Raises ClusterError if it is missing, empty or exposed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise ClusterError(
            f"{path}: no token found; copy the cluster's token into this file (mode 0600), "
            "or start a cluster of your own with `hourglass cluster start`, which generates one"
        ) from None
    except OSError as error:
        raise ClusterError(f"{path}: cannot read the token ({error.strerror})") from None
    # Mode and content are read from one descriptor, so the file cannot be swapped in between.
    with os.fdopen(descriptor, "rb") as file:
        _refuse_exposed(path, os.fstat(descriptor))
        content = file.read(4097)
    token = content.decode("ascii", errors="replace").strip()
    if not token:
        raise ClusterError(f"{path}: the token file is empty; remove it to generate a new token")
    if len(content) > 4096 or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(
            f"{path}: not a token; allowed is one line of at most 4096 printable ASCII characters "
            "without spaces; remove the file to generate a new token"
        )
    return token


def private_folder(folder: Path) -> Path:
    """`folder`, created with mode 0700 if missing. Raises ClusterError if another user owns it.

    An existing folder keeps its read permissions and loses write permissions of other users, who
    could replace the token in it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # it is checked below
        folder.mkdir(mode=0o700)
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise ClusterError(f"{folder}: found a file, allowed is a folder; move the file")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise ClusterError(
            f"{folder}: belongs to user {found.st_uid}, not to you ({os.geteuid()}); "
            "set HOURGLASS_HOME or HOURGLASS_TEMP_DIR to a folder of your own"
        )
    if found.st_mode & stat.S_ISVTX:
        raise ClusterError(
            f"{folder}: shared with all users of this machine; set HOURGLASS_HOME or "
            "HOURGLASS_TEMP_DIR to a folder of your own, such as one below it"
        )
    if found.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    return folder


def _refuse_exposed(path: Path, found: os.stat_result) -> None:
    """Raise ClusterError unless the open token file is a plain file that only its owner can access."""
    if not stat.S_ISREG(found.st_mode):
        raise ClusterError(f"{path}: not a regular file; replace it by a file with the token")
    if found.st_mode & 0o077:
        raise ClusterError(
            f"{path}: found mode {stat.S_IMODE(found.st_mode):04o}, which lets other users access "
            f"the token, allowed is 0600; run `chmod 600 {path}`, or remove the file to generate a "
            "new token if others may have read it"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise ClusterError(
            f"{path}: belongs to user {found.st_uid}, not to you ({os.geteuid()}); "
            "remove it to generate a new token"
        )


def write_token(path: Path, token: str) -> None:
    """Write `token` atomically; the first of two concurrent writers wins."""
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
