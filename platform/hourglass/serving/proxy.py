"""Middleware in front of Ray's HTTP proxy: rejects headers that the proxy cannot decode.

Ray 2.60 decodes `x-request-id`, `x-request-timeout-seconds`, `x-session-id` and
`serve_multiplexed_model_id` as UTF-8 and responds with 500 if they are not; it also repeats any
`x-request-id` to the client. Ray's hook for proxy middleware installs this one.
"""

from typing import Any

from starlette.middleware import Middleware

from hourglass.serving.limits import RequestError
from hourglass.serving.middleware import App, Receive, Scope, Send, error_body, valid_request_id


def middlewares() -> list[Middleware]:
    """The middleware of Ray's proxy."""
    return [Middleware(PlainHeaders)]


class PlainHeaders:
    """Rejects headers that are not UTF-8; drops request ids that are unsafe to repeat."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 400."""
        if scope["type"] == "http":
            headers = scope["headers"]
            scope["headers"] = [pair for pair in headers if _is_plain_id(*pair)]
            bad = next((name for name, value in headers if not _is_text(value)), None)
            if bad is not None:
                await _refuse(send, f"header {bad.decode('latin-1')}: not valid UTF-8")
                return
        await self.app(scope, receive, send)


def _is_plain_id(name: bytes, value: bytes) -> bool:
    return name != b"x-request-id" or valid_request_id(value)


def _is_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


async def _refuse(send: Send, message: str) -> None:
    error = RequestError("Malformed", message)
    body = error_body(error, "none")
    headers: Any = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
