"""Arguments that several commands share."""

import contextlib
from typing import Annotated

import typer

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
