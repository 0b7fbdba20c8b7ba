"""Checks that a cluster responds at an address and accepts the token, since Ray retries for long."""

import json
import logging
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from hourglass import ray_internals
from hourglass.cluster import tokens
from hourglass.errors import ClusterError

REACH_S = 3.0
ANSWER_S = 8.0
LOOPBACK = "127.0.0.1"


def is_loopback(address: str) -> bool:
    """True if `address` (with or without a scheme) is on loopback."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    return host in (LOOPBACK, "localhost", "::1")


def check_head(address: str) -> None:
    """Raise ClusterError unless a Ray head at `address` (`host:port`) accepts the token."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ClusterError(
            f"address {address}: allowed is host:port of a Ray head (port 6379 by default); to use "
            "a cluster through its http(s):// dashboard, run `hourglass submit FILE --address URL`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ClusterError(
            f"address {address}: connection failed ({error.strerror or error}); check that the "
            "cluster is up (`hourglass cluster status`) and that this machine can reach the port. "
            "To run on this machine, unset HOURGLASS_ADDRESS and RAY_ADDRESS"
        ) from None
    tls = os.environ.get("RAY_USE_TLS") == "1"
    if tls and (problem := _handshake(host.strip("[]"), int(port))):
        raise ClusterError(f"address {address}: {problem}")
    answer = _greet(address)
    if answer not in ("ok", "refused") and not tls and _offers_tls(host.strip("[]"), int(port)):
        answer = (
            "the cluster uses TLS; make a certificate for this machine on the head with `hourglass "
            "cluster certify ADDRESS`, and join with --certificate FILE"
        )
        raise ClusterError(f"address {address}: {answer}")
    _refuse(address, answer, "a Ray head (port 6379 by default, not the dashboard's)")


def check_dashboard(url: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise ClusterError unless a Ray dashboard at `url` accepts the token of `environ`."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ClusterError(
            f"address {url}: allowed is the http(s):// URL of a Ray dashboard, such as "
            "http://127.0.0.1:8265"
        )
    _refuse(url, _version(url, environ), "a Ray dashboard (port 8265 by default)")


def _refuse(address: str, answer: str, wanted: str) -> None:
    """Raise ClusterError for every response but `ok`."""
    if answer == "refused":
        raise ClusterError(f"address {address}: the cluster rejected {_rejected()}")
    if answer != "ok":
        raise ClusterError(
            f"address {address}: {answer}; expected {wanted}; check that the cluster is up and that "
            "this machine can reach the port"
        )


def _greet(address: str) -> str:
    """`ok`, `refused` or the problem of a connection to `address` as a Ray head."""
    from ray.exceptions import AuthenticationError

    answer = ["a process listens, but does not respond as a Ray head"]

    def connect() -> None:
        try:
            ray_internals.open_head(address)
            answer[0] = "ok"
        except AuthenticationError:
            answer[0] = "refused"
        except Exception as error:  # Ray's RPC errors have no common base class
            logging.getLogger(__name__).debug("%s: %s", address, error)

    # Ray times out only after 40 s; a daemon thread does not delay the exit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answer[0]


def _handshake(host: str, port: int) -> str:
    """Why TLS with our certificate fails at an address; empty if it does not."""
    try:
        context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
        context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    except (OSError, KeyError) as error:
        return f"cannot read this machine's certificate ({error})"
    rejected = (
        "the cluster rejected this machine's certificate; make a new one on the head with `hourglass "
        "cluster certify ADDRESS`"
    )
    try:
        return "" if _shake_hands(context, host, port) else rejected
    except ssl.SSLCertVerificationError as error:
        return (
            f"the cluster's certificate is not accepted ({error.verify_message}); this machine's "
            "certificate must come from the head of this cluster, by `hourglass cluster certify ADDRESS`"
        )
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            folder = Path(os.environ["RAY_TLS_CA_CERT"]).parent
            return f"the cluster does not use TLS; remove {folder}, and join without --certificate"
        return rejected
    except OSError as error:
        return f"the cluster ends a TLS connection ({error.strerror or error}); does it use TLS?"


def _offers_tls(host: str, port: int) -> bool:
    """True if a server at an address begins TLS with anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _shake_hands(context, host, port)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it speaks TLS, and wants our certificate
    except OSError:
        return False
    return True


def _shake_hands(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Open and close a TLS connection; False if the server ends it. Raises OSError, ssl.SSLError."""
    context.set_alpn_protocols(["h2"])  # gRPC's
    with (
        socket.create_connection((host, port), timeout=REACH_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        # In TLS 1.3 a server looks at our certificate after the handshake. Ray's sends HTTP/2's first
        # frame if it accepts it, and closes the connection without an alert if not.
        return bool(secured.recv(1))


def _version(url: str, environ: Mapping[str, str]) -> str:
    """`ok`, `refused` or the problem of a request for Ray's version to `url`."""
    request = urllib.request.Request(f"{url.rstrip('/')}/api/version", headers=_headers(environ))
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
            return "ok" if "ray_version" in json.loads(response.read(65536)) else "not a dashboard"
    except urllib.error.HTTPError as error:
        return "refused" if error.code in (401, 403) else f"HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return f"connection failed ({getattr(error, 'reason', error)})"


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    """The header with the token, if there is one."""
    token, path = environ.get("RAY_AUTH_TOKEN"), environ.get("RAY_AUTH_TOKEN_PATH")
    if environ.get("RAY_AUTH_MODE") != "token" or not (token or path):
        return {}
    return {"Authorization": f"Bearer {token or tokens.read_token(Path(str(path)))}"}


def _rejected() -> str:
    """The token that this process sends, and how to replace it."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "a request without a token; unset RAY_AUTH_MODE, found disabled"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "the token in RAY_AUTH_TOKEN; set it to the cluster's own token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"the token in {path}; write the cluster's own token there (mode 0600)"
