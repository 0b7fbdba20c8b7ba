"""The only reader of the environment: where this machine keeps things and how it reaches others.

The environment describes the machine, never the experiment; experiments live in job files.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from hourglass.errors import SpecError

ATTEMPTS = ("HOURGLASS_S3_ATTEMPTS", "AWS_MAX_ATTEMPTS")
Seconds = Annotated[PositiveFloat, Field(allow_inf_nan=False)]


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
    s3_connect_timeout_s: Seconds = Field(5.0, description="Seconds to reach an S3 endpoint.")
    s3_read_timeout_s: Seconds = Field(15.0, description="Seconds it may be silent.")
    s3_attempts: PositiveInt = Field(
        2,
        description="How often botocore asks it.",
        validation_alias=AliasChoices(*ATTEMPTS),
    )
    s3_total_timeout_s: Seconds = Field(
        600.0, description="Seconds that one request may take, its answer included."
    )
    tracking: Literal["mlflow", "files"] = Field(
        "mlflow",
        description="Backend of runs and models: MLflow, or plain files in <home>/tracking.",
    )
    tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError("\n".join(map(_sentence, error.errors(include_url=False)))) from None

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


def _sentence(item: Any) -> str:
    """Which variable is wrong, and how."""
    name = str(item["loc"][0])
    variable = name if name.isupper() else f"HOURGLASS_{name.upper()}"
    if name in ATTEMPTS:
        variable = next((other for other in ATTEMPTS if other in os.environ), name)
    return f"{variable}: found {item['input']!r}; {item['msg'][:1].lower()}{item['msg'][1:]}"
