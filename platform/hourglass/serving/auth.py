"""The bearer token: read by the process that starts the endpoints, which keep only its SHA-256."""

import hashlib
import hmac
import os
import stat
from pathlib import Path

from hourglass.errors import ClusterError
from hourglass.settings import Settings

TOKEN_FILE = "serve_token"
SHORTEST = 16


def read_token(settings: Settings) -> str:
    """The token in HOURGLASS_SERVE_TOKEN or, without it, in <home>/serve_token.

    Raises: ClusterError if there is none, or if other users can read or guess it.
    """
    if settings.serve_token is not None:
        token, source = settings.serve_token.get_secret_value().strip(), "HOURGLASS_SERVE_TOKEN"
    else:
        path = settings.root / TOKEN_FILE
        token, source = _read_private(path), str(path)
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(
            f"{source}: found a token of {len(token)} characters; allowed are at least {SHORTEST}, "
            "printable ASCII without spaces"
        )
    return token


def _read_private(path: Path) -> str:
    """The text of a file that only its owner can access. Raises ClusterError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise ClusterError(
            f"{path}: cannot read the token ({error.strerror}); run `hourglass serve`, which "
            "generates one, or set HOURGLASS_SERVE_TOKEN"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ClusterError(
                f"{path}: found mode {stat.S_IMODE(mode):04o}, which lets other users access the "
                f"token, allowed is 0600; run `chmod 600 {path}`, or remove the file if others may "
                "have read it"
            )
        return file.read(4097).decode("ascii", errors="replace").strip()


def fingerprint(token: str) -> str:
    """SHA-256 of the token in hex, which is all that a running endpoint keeps."""
    return hashlib.sha256(token.encode()).hexdigest()


def admits(expected: str, authorization: list[bytes]) -> bool:
    """True for exactly one `Authorization: Bearer <token>` whose token has this fingerprint.

    Both sides are digests of equal length, compared in constant time.
    """
    scheme, _, token = authorization[0].partition(b" ") if len(authorization) == 1 else (b"",) * 3
    given = hashlib.sha256(token.strip()).hexdigest()
    return hmac.compare_digest(given, expected) and scheme.lower() == b"bearer"
