"""The HTTP application: FastAPI routes over any backend that answers for models. No Ray in here."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from hourglass import __version__
from hourglass.config.serve import ServeSpec
from hourglass.errors import nearest
from hourglass.serving.answers import ANSWERS, ENCODERS, JSON, Arrays, Ask, Card, Verb, check_finite
from hourglass.serving.arrow import MEDIA_TYPE, decode_arrow
from hourglass.serving.limits import STATUS, RequestError, read_body
from hourglass.serving.middleware import DOCS_ASSETS, RequestGuard
from hourglass.serving.rows import Matrix, decode_json

READY_CACHE_S = 1.0


class Backend(Protocol):
    """Whoever holds the models: Ray Serve deployments, or predictors in this process."""

    @property
    def cards(self) -> Mapping[str, Card]:
        """The models, by name."""

    async def answer(self, name: str, ask: Ask) -> Arrays:
        """The answer of model `name`. Raises RequestError when it has no room or is gone."""

    async def ready(self) -> bool:
        """True when every model can answer."""


class Endpoints:
    """The handlers: decode, ask, encode."""

    def __init__(self, spec: ServeSpec, backend: Backend) -> None:
        self.spec = spec
        self.backend = backend
        # One thread: decoding holds the interpreter anyway, and one body at a time is unpacked.
        self.codec = ThreadPoolExecutor(1, thread_name_prefix="codec")
        self.ready_at, self.ready_was = float("-inf"), False

    def card(self, name: str) -> Card:
        """The card of model `name`. Raises RequestError."""
        cards = self.backend.cards
        if name not in cards:
            near = nearest(name[:100], cards)
            raise RequestError(
                "NotFound", f"no such model{near} Models: {', '.join(sorted(cards))}"
            )
        return cards[name]

    async def answer(self, request: Request, name: str, verb: Verb) -> Response:
        """Answer one question about the rows in the body."""
        card = self.card(name)
        most = _feature_errors(request, verb, len(card.feature_names))
        sent = _content_type(request)
        wanted = _accepted(request, sent)
        body = await read_body(request.stream(), self.spec.limits.body_bytes)
        rows = await self._in_thread(self._decode, sent, body, card)
        arrays = await self.backend.answer(name, Ask(verb, rows, most))
        check_finite(arrays)
        content = await self._in_thread(ENCODERS[wanted], card, arrays)
        return Response(content, media_type=wanted, headers=_headers(card))

    async def is_ready(self) -> bool:
        """Whether every model answers; asked at most once a second, since anyone may ask us."""
        if time.monotonic() - self.ready_at > READY_CACHE_S:
            self.ready_at = time.monotonic()
            self.ready_was = await self.backend.ready()
        return self.ready_was

    def _decode(self, sent: str, body: bytes, card: Card) -> Matrix:
        decode = decode_json if sent == JSON else decode_arrow
        return decode(body, card.expected, self.spec.limits)

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.codec, function, *args)


def create_app(spec: ServeSpec, backend: Backend, token_sha256: str) -> FastAPI:
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
    endpoints = Endpoints(spec, backend)
    _health(app, endpoints)
    _models(app, endpoints)
    for verb in ANSWERS:
        _verb(app, endpoints, verb)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_middleware(RequestGuard, spec=spec, token_sha256=token_sha256)
    _document(app)
    return app


def _health(app: FastAPI, endpoints: Endpoints) -> None:
    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"], responses=_errors("Unavailable"))
    async def ready() -> dict[str, str]:
        """Every model answers."""
        if not await endpoints.is_ready():
            raise RequestError("Unavailable", "not every model answers", {"retry-after": "1"})
        return {"status": "ready"}


def _models(app: FastAPI, endpoints: Endpoints) -> None:
    @app.get("/models", tags=["models"], responses=_errors("Unauthorized"))
    async def models() -> dict[str, list[dict[str, str]]]:
        """The models served, with version and digest."""
        return {"models": [card.identity for card in endpoints.backend.cards.values()]}

    @app.get("/models/{name}", tags=["models"], responses=_errors("Unauthorized", "NotFound"))
    async def model(name: str, response: Response) -> Card:
        """What a model needs of a row, and what it gives."""
        card = endpoints.card(name)
        response.headers.update(_headers(card))
        return card


def _verb(app: FastAPI, endpoints: Endpoints, verb: Verb) -> None:
    async def answer(request: Request, name: str) -> Response:
        return await endpoints.answer(request, name, verb)

    extra: dict[str, Any] = {"requestBody": _REQUEST_BODY}
    if verb == "anomaly":
        extra["parameters"] = [_FEATURE_ERRORS]
    app.post(
        f"/models/{{name}}/{verb}",
        tags=["models"],
        name=verb,
        description=ANSWERS[verb].__doc__,
        response_model=None,
        responses={
            200: {
                "model": ANSWERS[verb],
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
    """The format of the answer: the body's own, unless Accept names only the other."""
    given = ",".join(request.headers.getlist("accept")) or "*/*"
    kinds = [part.partition(";")[0].strip().lower() for part in given.split(",")]
    if sent in kinds or "*/*" in kinds or "application/*" in kinds:
        return sent
    for kind in kinds:
        if kind in ENCODERS:
            return kind
    raise RequestError("NotAcceptable", f"accept: the answer can be {' or '.join(ENCODERS)}")


def _feature_errors(request: Request, verb: Verb, features: int) -> int:
    """How many feature errors the query asks for. Raises RequestError for any other parameter."""
    allowed = ["feature_errors"] if verb == "anomaly" else []
    given = request.query_params.multi_items()
    unknown = next((key for key, _ in given if key not in allowed), None)
    if unknown is not None:
        known = f"; allowed is {allowed[0]}" if allowed else ""
        raise RequestError("Invalid", f"unknown query parameter{known}")
    if not given:
        return 0
    text = given[0][1]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if len(given) > 1 or not 1 <= number <= features:
        raise RequestError("Invalid", f"feature_errors: allowed is one number from 1 to {features}")
    return number


def _headers(card: Card) -> dict[str, str]:
    return {"x-model-version": card.version, "x-model-digest": card.digest}


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method), in our shape."""
    assert isinstance(error, HTTPException)
    kinds = {404: "NotFound", 405: "MethodNotAllowed"}
    kind = kinds.get(error.status_code, "Malformed")
    messages = {"NotFound": "no such path", "MethodNotAllowed": "this path has other methods"}
    raise RequestError(kind, messages.get(kind, "not a valid request"), error.headers)


async def _query_error(_: Request, error: Exception) -> Response:
    raise RequestError("Invalid", "not a valid request")


def _errors(*kinds: str) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        STATUS[kind]: {"description": kind, "content": {JSON: {"schema": schema}}} for kind in kinds
    }


def _document(app: FastAPI) -> None:
    """Add the token and the shape of errors to the OpenAPI document."""
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
_FEATURE_ERRORS = {
    "name": "feature_errors",
    "in": "query",
    "required": False,
    "description": "Name this many features of each row, largest error first.",
    "schema": {"type": "integer", "minimum": 1},
}
