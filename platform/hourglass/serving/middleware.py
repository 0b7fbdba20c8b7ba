"""The middleware that every request passes before the application sees it, as plain ASGI.

The bearer token is read by the process that starts the endpoints, which keep only its SHA-256.

The order matters: header limits, token, declared length, deadline. Only then is the body read, and
its bytes are counted. All errors have one JSON format, without paths, tracebacks or host names.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hourglass.errors import ClusterError
from hourglass.serving.limits import (
    RequestError,
    check_head,
    check_length,
    deadline_s,
    too_large,
)
from hourglass.settings import Settings

if TYPE_CHECKING:  # Ray's proxies import this file; the spec would bring torch along
    from hourglass.config.serve import ServeSpec

TOKEN_FILE = "serve_token"
SHORTEST = 16


def read_token(settings: Settings) -> str:
    """The token in HOURGLASS_SERVE_TOKEN or, without it, in <home>/serve_token.

    Raises: ClusterError if there is none, or if other users can read or guess it.
    """
    if settings.serve_token is not None:
        token, source = settings.serve_token.get_secret_value().strip(), "HOURGLASS_SERVE_TOKEN"
    else:
        path = settings.root / TOKEN_FILE
        token, source = _read_private(path), str(path)
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(
            f"{source}: found a token of {len(token)} characters; allowed are at least {SHORTEST}, "
            "printable ASCII without spaces"
        )
    return token


def _read_private(path: Path) -> str:
    """The text of a file that only its owner can access. Raises ClusterError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise ClusterError(
            f"{path}: cannot read the token ({error.strerror}); run `hourglass serve`, which "
            "generates one, or set HOURGLASS_SERVE_TOKEN"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ClusterError(
                f"{path}: found mode {stat.S_IMODE(mode):04o}, which lets other users access the "
                f"token, allowed is 0600; run `chmod 600 {path}`, or remove the file if others may "
                "have read it"
            )
        return file.read(4097).decode("ascii", errors="replace").strip()


def fingerprint(token: str) -> str:
    """SHA-256 of the token in hex, which is all that a running endpoint keeps."""
    return hashlib.sha256(token.encode()).hexdigest()


def admits(expected: str, authorization: list[bytes]) -> bool:
    """True for exactly one `Authorization: Bearer <token>` whose token has this fingerprint.

    Both sides are digests of equal length, compared in constant time.
    """
    scheme, _, token = authorization[0].partition(b" ") if len(authorization) == 1 else (b"",) * 3
    given = hashlib.sha256(token.strip()).hexdigest()
    return hmac.compare_digest(given, expected) and scheme.lower() == b"bearer"


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DOCS_ASSETS = "/docs/assets"
"""Path of the scripts, styles and icon of /docs."""
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/docs", "/openapi.json"}) | {
    f"{DOCS_ASSETS}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
}
"""Paths that need no token: they name no model and read no body."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
logger = logging.getLogger("ray.serve")


class RequestGuard:
    """Wraps an ASGI application: token, limits, deadline, request id and the format of errors."""

    def __init__(self, app: App, spec: "ServeSpec", token_sha256: str) -> None:
        self.app = app
        self.spec = spec
        self.token_sha256 = token_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; WebSockets are closed, lifespan events are passed on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _only(scope, b"x-request-id")
        valid = given is not None and valid_request_id(given)
        request_id = given.decode() if given and valid else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        response = _Response(send, None if given else request_id)
        try:
            seconds = self._admit(scope)
            async with asyncio.timeout(seconds):
                await self.app(scope, self._counted(receive), response)
        except RequestError as error:
            await response.refuse(error, request_id)
        except TimeoutError:
            late = RequestError("Timeout", "the deadline passed before the response was ready")
            await response.refuse(late, request_id)
        except Exception:
            # The log has the traceback under the request's id; the client gets only the id.
            logger.exception("request %s failed", request_id)
            fault = RequestError("Internal", "the request failed; its id is in the server's log")
            await response.refuse(fault, request_id)

    def _admit(self, scope: Scope) -> float:
        """Check all that precedes the body; the seconds until the deadline. Raises RequestError."""
        target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
        check_head(scope["headers"], target)
        if scope["path"] not in OPEN_PATHS and not admits(
            self.token_sha256, _all(scope, b"authorization")
        ):
            raise RequestError(
                "Unauthorized",
                "missing or wrong bearer token; send `Authorization: Bearer TOKEN`",
                {"www-authenticate": "Bearer"},
            )
        encodings = _all(scope, b"content-encoding")
        if any(encoding.strip().lower() != b"identity" for encoding in encodings):
            raise RequestError(
                "UnsupportedMediaType", "content-encoding is not supported; send plain bytes"
            )
        check_length(_only(scope, b"content-length"), self.spec.limits.body_bytes)
        return deadline_s(_only(scope, b"x-request-timeout-seconds"), self.spec.request_timeout_s)

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that raises RequestError once the body exceeds its limit."""
        most, received = self.spec.limits.body_bytes, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise too_large(most)
            return message

        return counted


class _Response:
    """`send` that adds headers and records whether the response has started."""

    def __init__(self, send: Send, request_id: str | None) -> None:
        self.send = send
        self.started = False
        self.headers = [(b"x-content-type-options", b"nosniff")]
        if request_id is not None:  # otherwise Ray's proxy adds the header
            self.headers.append((b"x-request-id", request_id.encode()))

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", []), *self.headers]
        await self.send(message)

    async def refuse(self, error: RequestError, request_id: str) -> None:
        """Send the error, unless the response has already started."""
        if self.started:
            return
        body = error_body(error, request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        pairs = [(k.encode(), v.encode()) for k, v in (headers | error.headers).items()]
        start = {"type": "http.response.start", "status": error.status, "headers": pairs}
        await self(start)
        await self({"type": "http.response.body", "body": body})


def error_body(error: RequestError, request_id: str) -> bytes:
    """The JSON of every error; ASCII, whatever the request contains."""
    detail = {"class": error.kind, "message": str(error), "request_id": request_id}
    return json.dumps({"error": detail}).encode()


def valid_request_id(given: bytes) -> bool:
    """True for an id that is safe to repeat in headers, bodies and logs."""
    return _REQUEST_ID.fullmatch(given) is not None


def _all(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _only(scope: Scope, name: bytes) -> bytes | None:
    values = _all(scope, name)
    return values[0] if values else None
