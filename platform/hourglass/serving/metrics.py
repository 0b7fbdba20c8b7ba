"""Rows, latency and errors of each model for Prometheus, measured where requests wait for the model.

Ray puts `ray_` before the names and `_total` after those of counters. It counts requests that the
ingress rejects before it asks a model itself (`ray_serve_num_http_error_requests_total`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve.metrics import Counter, Histogram

ROWS = "hourglass_serve_rows"
LATENCY = "hourglass_serve_latency_ms"
ERRORS = "hourglass_serve_errors"
BOUNDARIES_MS = [
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10000.0,
]


class ModelMetrics:
    """The metrics of one ingress process."""

    def __init__(self) -> None:
        self._rows = Counter(ROWS, "Rows answered.", tag_keys=("model",))
        self._errors = Counter(ERRORS, "Requests without answer.", tag_keys=("model", "kind"))
        self._latency = Histogram(
            LATENCY, "Milliseconds in the queue and the model.", BOUNDARIES_MS, ("model",)
        )

    @contextmanager
    def measured(self, model: str, rows: int) -> Iterator[None]:
        """Measure the block that answers a request; its errors are counted by kind and pass."""
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:  # a deadline cancels the request
            kind = str(getattr(error, "kind", type(error).__name__))
            self._errors.inc(tags={"model": model, "kind": kind})
            raise
        self._latency.observe((time.perf_counter() - start) * 1000, tags={"model": model})
        if rows:
            self._rows.inc(rows, tags={"model": model})
