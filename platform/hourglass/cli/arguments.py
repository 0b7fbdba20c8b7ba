"""Arguments that several commands take."""

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
    from hourglass.errors import DataError
    from hourglass.tracking.registry import FILES

    for folder in (out, out.rpartition("/")[0] or "."):
        with reaching(folder):
            inside = storage.names(folder)
        if set(FILES) <= set(inside):
            raise DataError(
                f"{out}: lies in the folder of an artifact, which holds no other files and would no "
                "longer load; write elsewhere"
            )
    return out
