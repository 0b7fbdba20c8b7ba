"""Commands on the registry, and its web page."""

from typing import Annotated

import typer

from hourglass.cli.arguments import ModelName


def list_models() -> None:
    """List the registered models: versions, aliases, digest and metric."""
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
    version: Annotated[str | None, typer.Option(help="One version, in full.")] = None,
) -> None:
    """Show the versions of a registered model, or one of them in full."""
    from hourglass.settings import Settings
    from hourglass.tracking import registry, table

    if version is None:
        table.versions(registry.versions(Settings(), name))
    else:
        table.version(registry.version(Settings(), name, version))


def promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The champion to be.")],
) -> None:
    """Verify a version's artifact, then make it the champion."""
    from hourglass.settings import Settings
    from hourglass.tracking import registry

    promoted = registry.promote(Settings(), name, version)
    before = f"version {promoted.before} was" if promoted.before else "there was none before"
    typer.echo(f"{name} version {promoted.version.version} is champion; {before}")


def sync() -> None:
    """Deliver to MLflow what runs could not deliver.

    Exits with 1 if something could not be delivered.
    """
    from hourglass.settings import Settings
    from hourglass.tracking import tracker

    synced = tracker.sync(Settings())
    for line in synced.said or ["nothing to deliver"]:
        typer.echo(line)
    if synced.left:
        raise typer.Exit(1)


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Start MLflow's web page; runs until Ctrl-C.

    It listens on this machine only.
    """
    from hourglass.settings import Settings
    from hourglass.tracking import ui as page

    page.serve(Settings(), port, typer.echo)
