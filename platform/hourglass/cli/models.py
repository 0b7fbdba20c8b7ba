"""Commands on the model registry, and MLflow's web UI."""

from typing import Annotated

import typer

from hourglass.cli.arguments import ModelName


def list_models() -> None:
    """List the registered models.

    Prints versions, aliases, digest and metric of each.
    """
    from hourglass.settings import Settings
    from hourglass.tracking import registry, table

    settings = Settings()
    known = {name: registry.versions(settings, name) for name in registry.names(settings)}
    if known:
        table.models(known)
    else:
        typer.echo("no registered models; train one with `track.register` set")


def show(
    name: ModelName,
    version: Annotated[str | None, typer.Option(help="Show all fields of one version.")] = None,
) -> None:
    """Show the versions of a registered model."""
    from hourglass.settings import Settings
    from hourglass.tracking import registry, table

    if version is None:
        table.versions(registry.versions(Settings(), name))
    else:
        table.version(registry.version(Settings(), name, version))


def promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Version to promote.")],
) -> None:
    """Verify a version and make it the champion."""
    from hourglass.settings import Settings
    from hourglass.tracking import registry

    promoted = registry.promote(Settings(), name, version)
    before = f"previously version {promoted.before}" if promoted.before else "no champion before"
    typer.echo(f"{name} version {promoted.version.version} is champion ({before})")


def sync() -> None:
    """Deliver records to MLflow that runs could not deliver.

    Exits with code 1 if some cannot be delivered yet.
    """
    from hourglass.settings import Settings
    from hourglass.tracking import tracker

    synced = tracker.sync(Settings())
    for line in synced.messages or ["nothing to deliver"]:
        typer.echo(line)
    if synced.left:
        raise typer.Exit(1)


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Start MLflow's web UI and run until Ctrl-C.

    It listens on loopback only.
    """
    from hourglass.settings import Settings
    from hourglass.tracking import ui as page

    page.serve(Settings(), port, typer.echo)
