"""The connection to Ray of commands that need a cluster."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hourglass.settings import Settings


@contextmanager
def connected(settings: "Settings") -> Iterator[None]:
    """A connection to Ray for the length of a block; a terminal shows a status until it is open."""
    from rich.console import Console

    from hourglass.process import native_stderr_aside

    with ExitStack() as stack:
        if "--debug" not in sys.argv:
            stack.enter_context(native_stderr_aside())
        with Console(stderr=True).status("starting or connecting to Ray"):
            from hourglass import run  # noqa: F401  # PyTorch takes seconds to import
            from hourglass.cluster.connect import connection

            stack.enter_context(connection(settings=settings))
        yield
