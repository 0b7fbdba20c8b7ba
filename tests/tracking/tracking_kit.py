"""What tests of MLflow share."""

from pathlib import Path

from hourglass.settings import Settings


def at(home: Path, uri: str | None = None) -> Settings:
    """The settings of a project folder, with its own store or the one at `uri`."""
    return Settings.model_validate({"home": home, "MLFLOW_TRACKING_URI": uri})
