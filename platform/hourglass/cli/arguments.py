"""Arguments that several commands share, and their connection to Ray."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hourglass.settings import Settings

File = Annotated[str, typer.Argument(metavar="FILE", help="YAML file to read.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one field; repeatable."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="URL of the cluster's dashboard; default: HOURGLASS_ADDRESS, else the local head.",
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model.")]


def not_in_an_artifact(out: str) -> str:
    """The output path. Raises DataError inside an artifact, which would then fail verification."""
    from hourglass import storage
    from hourglass.data.footer import reaching
    from hourglass.tracking.backend import MANIFEST

    for folder in storage.above(out):
        with reaching(out), contextlib.suppress(PermissionError):  # no artifact that can be loaded
            if storage.exists(storage.join(folder, MANIFEST)):
                from hourglass import artifact  # imports PyTorch, which takes two seconds

                artifact.require_outside(out)
    return out


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
