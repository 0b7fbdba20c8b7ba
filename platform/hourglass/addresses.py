"""Addresses of this machine: loopback, and the ports that can be bound."""

import socket
from collections.abc import Container

from hourglass.errors import ClusterError

LOOPBACK = "127.0.0.1"


def require_free(host: str, port: int, where: str, advice: str) -> None:
    """Raise ClusterError that names `where` and gives `advice` unless `port` can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"{where}: cannot listen on {host}:{port} ({error.strerror}); {advice}"
            ) from None


def free_port(reserved: Container[int] = ()) -> int:
    """A port that is free on loopback now, outside `reserved`."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in reserved:
            return port
