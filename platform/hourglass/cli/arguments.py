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
