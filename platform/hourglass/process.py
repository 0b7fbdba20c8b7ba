"""This process and this machine: ending signals, native standard error, loopback ports."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from hourglass.errors import ClusterError


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a supervisor or the stop of a job."""


def raise_on_sigterm() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does, with all its cleanups."""

    def stop(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread, also where that waits, as the signals do.

    Nothing happens where both are ignored, or end the process at once.
    """
    main = threading.main_thread().ident
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores SIGINT
        if main is not None and callable(signal.getsignal(number)):
            signal.pthread_kill(main, number)
            return


@contextmanager
def deferred() -> Iterator[None]:
    """For a block that must not be cut short: what a signal raises is raised at its end.

    Handlers are then those of before, whatever the block installed; only where nobody had one (SIGTERM
    in a program that uses us) that of the block stays.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in found.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        if signal.SIGTERM not in before:
            raise
        came.append(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def native_stderr_aside() -> Iterator[None]:
    """Keep off the screen what native code says on stderr, and on it what Python says there.

    Ray's C++ part writes errors to its log file and again to our stderr, of what it then mends itself.
    """
    shown = sys.stderr
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    plain = shown is sys.__stderr__
    if plain:
        shown.flush()
        sys.stderr = os.fdopen(os.dup(screen), "w", buffering=1)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        if sys.stderr is not shown:
            sys.stderr.close()
            sys.stderr = shown
        os.close(screen)
        os.close(nowhere)


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
