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
from hourglass.config.errors import set_field
from hourglass.config.train import RegistryName, Uri
from hourglass.errors import SpecError
from hourglass.strict import Strict


class ModelRef(Strict):
    """One model and its name in URLs."""

    name: RegistryName = Field(description="Name in the URL: /models/{name}/...")
    uri: Uri = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or an artifact folder.")


class Autoscaling(Strict):
    """Number of replicas by load, within bounds."""

    min: PositiveInt = Field(description="Minimum number of replicas, kept when idle.")
    max: PositiveInt = Field(description="Maximum number of replicas.")
    target_ongoing_requests: PositiveFloat = Field(
        8.0, description="Target number of ongoing requests per replica."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be greater than max ({self.max})")
        return self


class Limits(Strict):
    """Limits of one request."""

    max_rows: PositiveInt = Field(4096, description="Maximum rows per request.")
    body_bytes: PositiveInt = Field(8 * 2**20, description="Maximum bytes of a body.")
    depth: int = Field(16, ge=4, le=256, description="Maximum nesting depth of a JSON body.")


class ServeSpec(Strict):
    """The models to serve, and the resources and limits of each."""

    models: tuple[ModelRef, ...] = Field(description="Models to serve.")
    replicas: PositiveInt | Autoscaling = Field(
        1, description="Processes per model: a number, or {min, max, target_ongoing_requests}."
    )
    num_cpus: PositiveFloat = Field(1.0, description="CPUs per replica, and its number of threads.")
    ingress_replicas: PositiveInt = Field(
        1, description="Processes that validate and decode requests; each uses part of a CPU."
    )
    max_batch_rows: PositiveInt = Field(4096, description="Maximum rows of one forward pass.")
    batch_wait_s: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Seconds to wait for more requests to fill a batch; at 0, requests are batched "
        "only while another batch runs.",
    )
    max_ongoing_requests: PositiveInt = Field(
        32, description="Maximum ongoing requests per replica."
    )
    max_queued_requests: Literal["unbounded"] | PositiveInt = Field(
        64, description="Maximum requests waiting for a replica; more are rejected with 429."
    )
    request_timeout_s: PositiveFloat = Field(
        10.0, description="Deadline of a request in seconds; late ones fail with 408."
    )
    limits: Limits = Field(Limits(), description="Larger requests are rejected.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("models: found an empty list, allowed is at least one model")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"models: the name '{twice[0]}' is given twice; names must be unique")
        if self.max_batch_rows < self.limits.max_rows:
            raise ValueError(
                f"max_batch_rows ({self.max_batch_rows}) must be at least limits.max_rows "
                f"({self.limits.max_rows}), so that the largest request fits in a batch"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """Maximum replicas of a model."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def least_replicas(self) -> int:
        """Minimum replicas of a model."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min


class HttpOptions(Strict):
    """Where the proxy listens."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; loopback by default."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    keep_alive_timeout_s: PositiveInt = Field(
        15, description="Seconds after which an idle connection is closed."
    )
    ssl_keyfile: Uri | None = Field(None, description="TLS key; requires ssl_certfile.")
    ssl_certfile: Uri | None = Field(None, description="TLS certificate; requires ssl_keyfile.")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("found only one of ssl_keyfile and ssl_certfile; set both or neither")
        return self


class EnvVars(Strict):
    """Environment variables of Ray Serve's processes."""

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: Literal["hourglass.serving.proxy:middlewares"] = (
        Field(
            "hourglass.serving.proxy:middlewares",
            description="Rejects headers that would make Ray's proxy respond with 500.",
        )
    )


class RuntimeEnv(Strict):
    """Runtime environment of Ray Serve's processes."""

    env_vars: EnvVars = Field(EnvVars(), description="Environment variables.")


class ControllerOptions(Strict):
    """Options of Ray Serve's controller."""

    runtime_env: RuntimeEnv = Field(
        RuntimeEnv(), description="Runtime environment of the controller."
    )


class Application(Strict):
    """The application of the file."""

    name: RegistryName = Field("hourglass", description="Name of the Ray Serve application.")
    route_prefix: Literal["/"] = Field("/", description="Prefix of all paths.")
    import_path: Literal["hourglass.serving.app:build"] = Field(
        description="Function that builds the application."
    )
    args: ServeSpec = Field(description="Models to serve, with their resources and limits.")


class ServeFile(Strict):
    """A Ray Serve config file with one hourglass application."""

    proxy_location: Literal["HeadOnly", "EveryNode"] = Field(
        "HeadOnly", description="Nodes with an HTTP proxy."
    )
    http_options: HttpOptions = Field(HttpOptions(), description="Where the proxies listen.")
    controller_options: ControllerOptions = Field(
        ControllerOptions(),
        description="Options of the controller; write them out for `serve run`.",
    )
    applications: tuple[Application, ...] = Field(description="A list of one application.")

    @model_validator(mode="after")
    def _one_application(self) -> Self:
        if len(self.applications) != 1:
            raise ValueError(f"applications: found {len(self.applications)}, allowed is exactly 1")
        return self

    @property
    def spec(self) -> ServeSpec:
        """The application's arguments."""
        return self.applications[0].args

    @property
    def url(self) -> str:
        """URL of the endpoints."""
        options = self.http_options
        host = f"[{options.host}]" if ":" in options.host else options.host
        return f"{'https' if options.ssl_certfile else 'http'}://{host}:{options.port}"


SERVE: TypeAdapter[ServeFile] = TypeAdapter(ServeFile)


def is_serve_file(tree: dict[str, Any]) -> bool:
    """True for a file with a field of a serve file and without `kind`."""
    return "kind" not in tree and not tree.keys().isdisjoint(ServeFile.model_fields)


def load(path: str | Path, overrides: Sequence[str] = ()) -> ServeFile:
    """The validated serve file, with `a.b=value` overrides applied before validation.

    Raises: SpecError listing all mistakes.
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
