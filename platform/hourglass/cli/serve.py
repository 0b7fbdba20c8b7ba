"""The command that serves models."""

from typing import TYPE_CHECKING

import typer

from hourglass.cli.arguments import File, Overrides, connected

if TYPE_CHECKING:
    from hourglass.config.serve import ServeFile
    from hourglass.settings import Settings


def serve(
    file: File,
    overrides: Overrides = None,
) -> None:
    """Start the endpoints of a serve file and run until Ctrl-C."""
    from hourglass.cluster.shared import require_shared
    from hourglass.config.serve import load
    from hourglass.serving import middleware
    from hourglass.settings import Settings

    settings = Settings()
    spec = load(file, overrides or ())
    token = _serve_token(settings)
    middleware.read_token(settings)
    from hourglass.inference.endpoints import ENDPOINTS
    from hourglass.serving import run

    with connected(settings):
        require_shared(None, _folders(spec, settings))
        with run.deployed(spec, settings) as url:
            names = ", ".join(model.name for model in spec.spec.models)
            paths = "|".join(endpoint.name for endpoint in ENDPOINTS)
            typer.echo(f"endpoints  {url}/models/NAME/{paths} ({names})")
            typer.echo(f"docs       {url}/docs")
            typer.echo(f"token      {token}")
            run.until_stopped(lambda: typer.echo("ready; Ctrl-C stops"))


def _folders(file: "ServeFile", settings: "Settings") -> list[str]:
    """The artifacts that replicas read as files; others they fetch from an MLflow server."""
    from hourglass.tracking.registry import resolve

    served = settings.tracking == "mlflow" and settings.mlflow_uri.startswith("http")
    uris = [model.uri for model in file.spec.models]
    return [
        resolve(uri, settings).path for uri in uris if not (served and uri.startswith("models:"))
    ]


def _serve_token(settings: "Settings") -> str:
    """The location of the endpoints' token, which is generated if there is none."""
    from hourglass.cluster import tokens

    if settings.serve_token is not None:
        return "in HOURGLASS_SERVE_TOKEN"
    path = settings.root / tokens.SERVE_TOKEN
    tokens.ensure_token(path)
    return f"in {path}"
