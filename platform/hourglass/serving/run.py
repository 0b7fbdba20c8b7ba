"""`hourglass serve`: deploy a serve file and run until interrupted."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from hourglass import ray_internals
from hourglass.config.serve import ServeFile
from hourglass.errors import ClusterError, last_line
from hourglass.process import deferred, require_free
from hourglass.serving.app import build
from hourglass.settings import Settings

STOP_TIMEOUT_S = 30.0


@contextlib.contextmanager
def deployed(file: ServeFile, settings: Settings) -> Iterator[str]:
    """The endpoints of a file for the length of a block; yields their URL.

    Needs a connection to Ray. On a local cluster, which cannot grow, too few CPUs are an error,
    while Ray would wait for more. Raises ClusterError.
    """
    application = file.applications[0]
    target = build(application.args)
    if settings.address is None:
        _check_cpus(file)
        http = file.http_options
        advice = "stop the process that uses it, or choose another with --set http_options.port=..."
        require_free(http.host, http.port, "http_options", advice)
    options = HTTPOptions(**file.http_options.model_dump(exclude_none=True))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location=file.proxy_location,
            http_options=options,
            controller_options=file.controller_options.model_dump(),
        )
        try:
            serve.run(target, name=application.name, route_prefix=application.route_prefix)
        except RuntimeError as error:
            raise ClusterError(f"the endpoints did not start: {last_line(error)}") from error
        yield file.url
    finally:
        with deferred():  # on a shared cluster, the endpoints would outlive this process
            _stop()


def _stop() -> None:
    """Shut down Serve without waiting inside a call to its controller.

    `serve.shutdown` waits in such a call, which the controller's exit aborts, so that Ray prints a
    failed task. Here it only clears the handle. A missing controller is a ValueError, and a RayError
    for a call in progress.
    """
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        controller = ray_internals.serve_controller()
        ray.get(controller.graceful_shutdown.remote(wait=False))
        end = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < end:
            time.sleep(0.1)
            ray_internals.serve_controller()
    serve.shutdown()


def until_stopped(started: Callable[[], None]) -> None:
    """Call `started`, then wait for SIGINT or SIGTERM."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        started()
        while not stop.wait(1.0):  # an unbounded wait would keep Python from handling the signal
            pass
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _check_cpus(file: ServeFile) -> None:
    spec = file.spec
    need = spec.num_cpus * spec.least_replicas * len(spec.models)
    have = ray.cluster_resources().get("CPU", 0.0)
    if need > have:
        raise ClusterError(
            f"models x replicas x num_cpus = {len(spec.models)} x {spec.least_replicas} x "
            f"{spec.num_cpus:g} = {need:g} CPUs, found {have:g}; reduce one of them"
        )
