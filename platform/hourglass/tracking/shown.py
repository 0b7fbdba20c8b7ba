"""Text that may be shown: no user:password of a URI in it, an error as one line."""

import re

_USER = re.compile(r"://[^/@\s]+@")
_CAUSE = re.compile(r"Caused by (\w+)")
LONGEST = 300


def redact(text: str) -> str:
    """`text` with `***` for the user and password of every URI."""
    return _USER.sub("://***@", text)


def explain(error: Exception) -> str:
    """One line for an error of MLflow or the disk, without secrets."""
    text = str(error).strip()
    if cause := _CAUSE.search(text):  # urllib3's, below four layers of retries
        kind = cause.group(1)
        return (
            f"errors are its only answer ({kind})" if "Response" in kind else f"no answer ({kind})"
        )
    line = text.splitlines()[0] if text else ""
    return redact(f"{type(error).__name__}: {line}" if line else type(error).__name__)[:LONGEST]
