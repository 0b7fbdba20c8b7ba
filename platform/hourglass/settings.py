"""The only reader of the environment: where this machine keeps things and how it reaches others.

The environment describes the machine, never the experiment; experiments live in job files.
"""

from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Machine settings, each from `HOURGLASS_<NAME>` (or the tool's own variable where it has one)."""

    model_config = SettingsConfigDict(env_prefix="HOURGLASS_", extra="ignore", frozen=True)

    home: Path = Field(
        Path(".hourglass"), description="Project folder: runs, MLflow store, tokens."
    )
    runs: str | None = Field(None, description="Folder or s3:// URI for runs; default <home>/runs.")
    address: str | None = Field(None, description="Ray cluster; default: one on this machine.")
    temp_dir: str | None = Field(None, description="Ray's session folder; keep the path short.")
    serve_token: SecretStr | None = Field(None, description="Bearer token of the endpoints.")
    tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")

    @cached_property
    def root(self) -> Path:
        """`home` as an absolute path: Ray changes its workers' directory."""
        return self.home.absolute()

    @property
    def runs_uri(self) -> str:
        """Where runs (checkpoints, artifacts) live, as an absolute path or an `s3://` URI."""
        if self.runs is None:
            return str(self.root / "runs")
        return self.runs if "://" in self.runs else str(Path(self.runs).absolute())

    @property
    def mlflow_uri(self) -> str:
        """The MLflow store: MLFLOW_TRACKING_URI when set, else SQLite in the project folder."""
        return self.tracking_uri or f"sqlite:///{self.root / 'mlflow.db'}"
