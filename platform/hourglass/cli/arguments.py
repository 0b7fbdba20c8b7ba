"""Arguments that several commands take."""

import contextlib
from typing import Annotated

import typer

File = Annotated[str, typer.Argument(metavar="FILE", help="YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one field; may be given again."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Dashboard of the cluster [HOURGLASS_ADDRESS, else the local head]."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")]


def not_in_an_artifact(out: str) -> str:
    """A place to write to. Raises DataError for one in an artifact, which would no longer load."""
    from hourglass import storage
    from hourglass.data.footer import reaching
    from hourglass.tracking.registry import MANIFEST

    for folder in storage.above(out):
        with reaching(out), contextlib.suppress(PermissionError):  # then it is nobody's to load
            if storage.exists(storage.join(folder, MANIFEST)):
                from hourglass import artifact  # PyTorch takes two seconds, which few need here

                artifact.require_outside(out)
    return out
