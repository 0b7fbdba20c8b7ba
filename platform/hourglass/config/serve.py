"""The file of `hourglass serve`: a plain Ray Serve config file whose `args` are a frozen spec.

The same file is accepted by `hourglass serve`, `serve run` and `serve deploy`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from hourglass.config import errors
from hourglass.config.paths import set_field
from hourglass.config.train import RegistryName, Uri
from hourglass.errors import SpecError
from hourglass.strict import Strict


class ModelRef(Strict):
    """One model and the name it answers to."""

    name: RegistryName = Field(description="Name in the URL: /models/{name}/...")
    uri: Uri = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or an artifact folder.")


class Autoscaling(Strict):
    """Replicas by load, between two bounds."""

    min: PositiveInt = Field(description="Replicas kept when idle.")
    max: PositiveInt = Field(description="Most replicas.")
    target_ongoing_requests: PositiveFloat = Field(
        8.0, description="Requests in work per replica that scaling aims at."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Limits(Strict):
    """What one request may ask for."""

    max_rows: PositiveInt = Field(4096, description="Most rows in one request.")
    body_bytes: PositiveInt = Field(8 * 2**20, description="Most bytes of one body.")
    depth: int = Field(16, ge=4, le=256, description="Deepest nesting of a JSON body.")


class ServeSpec(Strict):
    """Which models answer, with what resources, and what is refused. Applies to each model."""

    models: tuple[ModelRef, ...] = Field(description="The models served.")
    replicas: PositiveInt | Autoscaling = Field(
        1, description="Processes per model: a number, or {min, max, target_ongoing_requests}."
    )
    num_cpus: PositiveFloat = Field(1.0, description="CPUs of one replica; also its threads.")
    ingress_replicas: PositiveInt = Field(
        1, description="Processes that check and decode requests; each needs a part of a CPU."
    )
    max_batch_rows: PositiveInt = Field(4096, description="Most rows of one forward pass.")
    batch_wait_s: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Wait for more requests to join a batch; at 0 they join while one runs.",
    )
    max_ongoing_requests: PositiveInt = Field(32, description="Requests in work per replica.")
    max_queued_requests: Literal["unbounded"] | PositiveInt = Field(
        64, description="Requests waiting for a replica; the next one is answered 429."
    )
    request_timeout_s: PositiveFloat = Field(10.0, description="Deadline of a request: then 408.")
    limits: Limits = Field(Limits(), description="Largest request; others are refused.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("models: found an empty list, at least one model is needed")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"models: the name '{twice[0]}' is given twice; names must be unique")
        if self.max_batch_rows < self.limits.max_rows:
            raise ValueError(
                f"max_batch_rows {self.max_batch_rows} is below limits.max_rows "
                f"{self.limits.max_rows}: a request at its limit would fit no batch"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """Replicas of a model at full scale."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def least_replicas(self) -> int:
        """Replicas of a model at rest."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min


class HttpOptions(Strict):
    """Where the proxy listens."""

    host: str = Field("127.0.0.1", min_length=1, description="Address; loopback by default.")
    port: int = Field(8000, ge=1, le=65535, description="Port.")
    keep_alive_timeout_s: PositiveInt = Field(15, description="Idle connections close after this.")
    ssl_keyfile: Uri | None = Field(None, description="TLS key, with ssl_certfile.")
    ssl_certfile: Uri | None = Field(None, description="TLS certificate, with ssl_keyfile.")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_keyfile and ssl_certfile are given together or not at all")
        return self


class EnvVars(Strict):
    """Variables of Serve's own processes."""

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: Literal["hourglass.serving.proxy:middlewares"] = (
        Field(
            "hourglass.serving.proxy:middlewares",
            description="Refuses headers that Ray's proxy would answer with 500.",
        )
    )


class RuntimeEnv(Strict):
    """Ray's nesting of the variables."""

    env_vars: EnvVars = Field(EnvVars(), description="Variables of the environment.")


class ControllerOptions(Strict):
    """Ray's nesting of the variables."""

    runtime_env: RuntimeEnv = Field(RuntimeEnv(), description="Environment of the controller.")


class Application(Strict):
    """The one application of the file."""

    name: RegistryName = Field("hourglass", description="Name of the Serve application.")
    route_prefix: Literal["/"] = Field("/", description="The endpoints live at the root.")
    import_path: Literal["hourglass.serving.app:build"] = Field(description="The builder.")
    args: ServeSpec = Field(description="Which models answer, and how.")


class ServeFile(Strict):
    """A Ray Serve config file with one hourglass application."""

    proxy_location: Literal["HeadOnly", "EveryNode"] = Field(
        "HeadOnly", description="Nodes that listen for HTTP."
    )
    http_options: HttpOptions = Field(HttpOptions(), description="Where they listen.")
    controller_options: ControllerOptions = Field(
        ControllerOptions(), description="Written out, so that `serve run` has it as well."
    )
    applications: tuple[Application, ...] = Field(description="The application, in a list of one.")

    @model_validator(mode="after")
    def _one_application(self) -> Self:
        if len(self.applications) != 1:
            raise ValueError(f"applications: found {len(self.applications)}, exactly 1 is needed")
        return self

    @property
    def spec(self) -> ServeSpec:
        """The application's arguments."""
        return self.applications[0].args

    @property
    def url(self) -> str:
        """Where the endpoints answer."""
        options = self.http_options
        host = f"[{options.host}]" if ":" in options.host else options.host
        return f"{'https' if options.ssl_certfile else 'http'}://{host}:{options.port}"


SERVE: TypeAdapter[ServeFile] = TypeAdapter(ServeFile)


def is_serve_file(tree: dict[str, Any]) -> bool:
    """True of a file that has no kind of job, and a field of a serve file."""
    return "kind" not in tree and not tree.keys().isdisjoint(ServeFile.model_fields)


def load(path: str | Path, overrides: Sequence[str] = ()) -> ServeFile:
    """The validated serve file, with `a.b=value` overrides applied before validation.

    Raises: SpecError listing every mistake: path, found, allowed, nearest name.
    """
    tree, lines = errors.read_yaml(path)
    for override in overrides:
        place = set_field(tree, override)
        lines = {steps: at for steps, at in lines.items() if steps[: len(place)] != place}
        lines[place] = errors.SET
    try:
        return SERVE.validate_python(tree)
    except ValidationError as error:
        raise SpecError(errors.explain(str(path), error, SERVE, lines)) from None
