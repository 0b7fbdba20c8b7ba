"""The HTTP application: FastAPI routes over any backend that holds models. Independent of Ray."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from hourglass import __version__
from hourglass.config.serve import ServeSpec
from hourglass.errors import nearest
from hourglass.inference.endpoints import ENDPOINTS, Arrays, Endpoint, ModelMetadata, Option
from hourglass.serving.answers import ENCODERS, JSON, ModelRequest, check_finite
from hourglass.serving.arrow import MEDIA_TYPE, decode_arrow
from hourglass.serving.json_body import Matrix, decode_json
from hourglass.serving.limits import STATUS, RequestError, read_body
from hourglass.serving.middleware import DOCS_ASSETS, RequestGuard

READY_CACHE_S = 1.0


class Backend(Protocol):
    """The loaded models: Ray Serve deployments, or predictors in this process."""

    @property
    def models(self) -> Mapping[str, ModelMetadata]:
        """The models by name."""

    async def answer(self, name: str, request: ModelRequest) -> Arrays:
        """The answer of model `name`. Raises RequestError when it is overloaded or unavailable."""

    async def ready(self) -> bool:
        """True if every model can respond."""


class Handlers:
    """The request handlers: decode, compute, encode."""

    def __init__(self, spec: ServeSpec, backend: Backend) -> None:
        self.spec = spec
        self.backend = backend
        # One thread: decoding holds the GIL anyway, and only one body at a time is in memory.
        self.codec = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self.ready_at, self.ready_was = float("-inf"), False

    def metadata(self, name: str) -> ModelMetadata:
        """The metadata of model `name`. Raises RequestError."""
        models = self.backend.models
        if name not in models:
            near = nearest(name[:100], models)
            raise RequestError(
                "NotFound", f"no such model{near} Models: {', '.join(sorted(models))}"
            )
        return models[name]

    async def answer(self, request: Request, name: str, endpoint: Endpoint) -> Response:
        """The endpoint's answer about the rows in the body."""
        metadata = self.metadata(name)
        options = _options(request, endpoint.options, metadata)
        sent = _content_type(request)
        wanted = _accepted(request, sent)
        body = await read_body(request.stream(), self.spec.limits.body_bytes)
        rows = await self._in_thread(self._decode, sent, body, metadata)
        arrays = await self.backend.answer(name, ModelRequest(endpoint, rows, options))
        check_finite(arrays)
        content = await self._in_thread(ENCODERS[wanted], endpoint, metadata, arrays)
        return Response(content, media_type=wanted, headers=_headers(metadata))

    async def is_ready(self) -> bool:
        """True when every model answers; checked at most once a second, since the path needs no token."""
        if time.monotonic() - self.ready_at > READY_CACHE_S:
            self.ready_at = time.monotonic()
            self.ready_was = await self.backend.ready()
        return self.ready_was

    def _decode(self, sent: str, body: bytes, metadata: ModelMetadata) -> Matrix:
        decode = decode_json if sent == JSON else decode_arrow
        return decode(body, metadata, self.spec.limits)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.codec, function, *args)


def create_app(
    spec: ServeSpec,
    backend: Backend,
    token_sha256: str,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> FastAPI:
    """The endpoints as an ASGI application, behind its middleware."""
    app = FastAPIOffline(  # /docs loads its scripts from here, not from a CDN
        title="hourglass",
        version=__version__,
        description="Codes, hashes, anomaly scores and reconstructions of rows.",
        redoc_url=None,
        static_url=DOCS_ASSETS,
        swagger_ui_parameters={"validatorUrl": None},  # no request to swagger.io
        redirect_slashes=False,  # a redirect would repeat the caller's Host header
    )
    handlers = Handlers(spec, backend)
    _add_health(app, handlers)
    _add_models(app, handlers)
    for endpoint in endpoints:
        _add_endpoint(app, handlers, endpoint)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_middleware(RequestGuard, spec=spec, token_sha256=token_sha256)
    _document(app)
    return app


def _add_health(app: FastAPI, handlers: Handlers) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process is running."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"], responses=_errors("Unavailable"))
    async def ready() -> dict[str, str]:
        """Every model responds."""
        if not await handlers.is_ready():
            raise RequestError("Unavailable", "not every model responds", {"retry-after": "1"})
        return {"status": "ready"}


def _add_models(app: FastAPI, handlers: Handlers) -> None:
    @app.get("/models", tags=["models"], responses=_errors("Unauthorized"))
    async def models() -> dict[str, list[dict[str, str]]]:
        """The models served, with version and digest."""
        return {"models": [metadata.identity for metadata in handlers.backend.models.values()]}

    @app.get("/models/{name}", tags=["models"], responses=_errors("Unauthorized", "NotFound"))
    async def model(name: str, response: Response) -> ModelMetadata:
        """The columns and types that a model expects, its code width and threshold."""
        metadata = handlers.metadata(name)
        response.headers.update(_headers(metadata))
        return metadata


def _add_endpoint(app: FastAPI, handlers: Handlers, endpoint: Endpoint) -> None:
    async def answer(request: Request, name: str) -> Response:
        return await handlers.answer(request, name, endpoint)

    extra: dict[str, Any] = {"requestBody": _REQUEST_BODY}
    if endpoint.options:
        extra["parameters"] = [_parameter(option) for option in endpoint.options]
    app.post(
        f"/models/{{name}}/{endpoint.name}",
        tags=["models"],
        name=endpoint.name,
        description=endpoint.response.__doc__,
        response_model=None,
        responses={
            200: {
                "model": endpoint.response,
                "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
                "headers": {
                    name: {"schema": {"type": "string"}}
                    for name in ("x-model-version", "x-model-digest", "x-request-id")
                },
            },
            **_errors(*(kind for kind in STATUS if kind not in ("MethodNotAllowed", "Internal"))),
        },
        openapi_extra=extra,
    )(answer)


def _content_type(request: Request) -> str:
    """The format of the body. Raises RequestError for any other."""
    given = request.headers.getlist("content-type")
    kind, _, rest = given[0].partition(";") if len(given) == 1 else ("", "", "")
    kind = kind.strip().lower()
    if kind not in ENCODERS or rest.strip().lower() not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise RequestError(
            "UnsupportedMediaType", f"content-type: allowed are {' and '.join(ENCODERS)}"
        )
    return kind


def _accepted(request: Request, sent: str) -> str:
    """The format of the response: that of the body, unless Accept names only the other."""
    given = ",".join(request.headers.getlist("accept")) or "*/*"
    kinds = [part.partition(";")[0].strip().lower() for part in given.split(",")]
    if sent in kinds or "*/*" in kinds or "application/*" in kinds:
        return sent
    for kind in kinds:
        if kind in ENCODERS:
            return kind
    raise RequestError("NotAcceptable", f"accept: allowed are {' and '.join(ENCODERS)}")


def _options(
    request: Request, allowed: Sequence[Option], metadata: ModelMetadata
) -> dict[str, int]:
    """The endpoint's options in the query. Raises RequestError for any other parameter or value."""
    given = request.query_params.multi_items()
    options = {option.name: option for option in allowed}
    if any(name not in options for name, _ in given):
        known = f"; allowed is {', '.join(options)}" if options else ""
        raise RequestError("Invalid", f"unknown query parameter{known}")
    found: dict[str, int] = {}
    for name, text in given:
        most = options[name].maximum(metadata)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
        if name in found or not 1 <= number <= most:
            raise RequestError("Invalid", f"{name}: allowed is one number from 1 to {most}")
        found[name] = number
    return found


def _parameter(option: Option) -> dict[str, Any]:
    """An option in the OpenAPI document."""
    return {
        "name": option.name,
        "in": "query",
        "required": False,
        "description": option.description,
        "schema": {"type": "integer", "minimum": 1},
    }


def _headers(metadata: ModelMetadata) -> dict[str, str]:
    return {"x-model-version": metadata.version, "x-model-digest": metadata.digest}


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own errors (no such path, wrong method), in the format of all errors."""
    assert isinstance(error, HTTPException)
    kinds = {404: "NotFound", 405: "MethodNotAllowed"}
    kind = kinds.get(error.status_code, "Malformed")
    messages = {
        "NotFound": "no such path",
        "MethodNotAllowed": "this path has other methods",
    }
    raise RequestError(kind, messages.get(kind, "not a valid request"), error.headers)


async def _query_error(_: Request, error: Exception) -> Response:
    raise RequestError("Invalid", "not a valid request")


def _errors(*kinds: str) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        STATUS[kind]: {"description": kind, "content": {JSON: {"schema": schema}}} for kind in kinds
    }


def _document(app: FastAPI) -> None:
    """Add the token and the format of errors to the OpenAPI document."""
    plain = app.openapi

    def documented() -> dict[str, Any]:
        schema = plain()
        components = schema.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        components.setdefault("schemas", {})["Error"] = _ERROR
        schema["security"] = [{"token": []}]
        for path in ("/health/live", "/health/ready"):
            schema["paths"][path]["get"]["security"] = []
        return schema

    app.openapi = documented  # type: ignore[method-assign]


_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["class", "message", "request_id"],
            "properties": {
                "class": {"type": "string", "enum": list(STATUS)},
                "message": _TEXT,
                "request_id": _TEXT,
            },
        }
    },
}
_CELLS = {"type": "array", "items": {"type": ["number", "null"]}}
_RECORD = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": ["number", "null"]}, _CELLS]},
}
_REQUEST_BODY = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["rows"],
                "additionalProperties": False,
                "properties": {
                    "rows": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"anyOf": [_CELLS, _RECORD]},
                    }
                },
            }
        },
        MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
    },
}
