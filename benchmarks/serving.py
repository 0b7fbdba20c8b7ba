"""Endpoints against their floors: a 256-row Arrow request beside the forward pass it wraps, and a
one-row JSON request beside a bare FastAPI app on uvicorn that answers a constant, and beside the
same app on Ray Serve, asking a deployment that answers a constant.

Both sides in one run, one client, keep-alive, 784-[100]-784 on random rows.

    python benchmarks/serving.py
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle

from hourglass import Autoencoder, load
from hourglass.cluster import tokens
from hourglass.cluster.connect import connection
from hourglass.config.serve import load as load_serve_file
from hourglass.serving.run import deployed
from hourglass.settings import Settings

BARE = """
from fastapi import FastAPI, Request
app = FastAPI()
@app.post("/")
async def answer(request: Request):
    await request.json()
    return {"codes": [[0.0] * 100]}
"""
SERVE = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: hourglass
    route_prefix: /
    import_path: hourglass.serving.app:build
    args: {{models: [{{name: bench, uri: {uri}}}], replicas: 1, num_cpus: 1}}
"""


@contextmanager
def bare_serve(port: int) -> Iterator[None]:
    """An ingress and a deployment behind it, as ours are, that check and compute nothing."""

    @serve.deployment
    class Constant:
        async def __call__(self, body: object) -> list[list[float]]:
            return [[0.0] * 100]

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Face:
        def __init__(self, constant: DeploymentHandle) -> None:
            self.constant = constant

        @app.post("/")
        async def answer(self, request: Request) -> dict[str, list[list[float]]]:
            return {"codes": await self.constant.remote(await request.json())}

    options = HTTPOptions(host="127.0.0.1", port=port)
    serve.start(proxy_location="HeadOnly", http_options=options)
    serve.run(Face.bind(Constant.bind()), name="bare", route_prefix="/")
    yield
    serve.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def latencies(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, for about `seconds`, after a warm-up."""
    for _ in range(20):
        call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def poster(port: int, path: str, body: bytes, headers: dict[str, str]) -> Callable[[], None]:
    """A function that posts `body` once over one kept-alive connection, opened now."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def post() -> None:
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    return post


def summary(taken: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(taken, n=100)
    return {"p50_ms": round(cuts[49], 2), "p99_ms": round(cuts[98], 2), "requests": len(taken)}


def arrow_body(rows: np.ndarray) -> bytes:
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = pa.table({"image": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def measure(home: Path) -> dict[str, object]:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (2048, 784), dtype=np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 784)
    estimator = Autoencoder(widths=[100], epochs=1, random_state=0)
    uri = str(home / "artifact")
    estimator.fit(pa.table({"image": column})).save(uri)
    predictor = load(uri)
    os.environ["HOURGLASS_HOME"] = str(home)  # the application builder reads settings of its own
    settings = Settings()
    token = tokens.ensure_token(settings.root / tokens.SERVE_TOKEN)
    port, bare_port = free_port(), free_port()
    file = home / "serve.yaml"
    file.write_text(SERVE.format(port=port, uri=uri))
    (home / "bare.py").write_text(BARE)
    uvicorn = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(bare_port)]
    bare = subprocess.Popen([*uvicorn, "--log-level", "warning"], cwd=home)
    plain = {"Content-Type": "application/json"}
    auth = {"Authorization": f"Bearer {token}"}
    arrow = {**auth, "Content-Type": "application/vnd.apache.arrow.stream"}
    one = json.dumps({"rows": rows[:1].tolist()}).encode()
    many = arrow_body(rows[:256])
    names = ("bare", "one", "arrow", "forward", "bare_serve")
    taken: dict[str, list[float]] = {name: [] for name in names}
    try:
        with connection(settings=settings), deployed(load_serve_file(file), settings):
            path = "/models/bench/encode"
            calls: dict[str, Callable[[], Callable[[], object]]] = {
                "bare": lambda: poster(bare_port, "/", one, plain),
                "one": lambda: poster(port, path, one, {**auth, **plain}),
                "arrow": lambda: poster(port, path, many, arrow),
                "forward": lambda: lambda: predictor.encode(rows[:256]),
            }
            for _ in range(5):
                for name, connected in calls.items():  # again: a server closes an idle connection
                    taken[name] += latencies(connected(), 3.0)
        bare_serve_port = free_port()
        with connection(settings=settings), bare_serve(bare_serve_port):
            for _ in range(5):
                taken["bare_serve"] += latencies(poster(bare_serve_port, "/", one, plain), 3.0)
    finally:
        bare.terminate()
        bare.wait(10)
    figures = {name: summary(values) for name, values in taken.items()}
    return {
        "what": "one client, keep-alive, 1 replica; 784-[100]-784 encode",
        "one_row_json": figures["one"],
        "bare_fastapi_one_row": figures["bare"],
        "bare_ray_serve_one_row": figures["bare_serve"],
        "ratio_one_row_p50_to_ray_serve": round(
            figures["one"]["p50_ms"] / figures["bare_serve"]["p50_ms"], 2
        ),
        "ratio_one_row_p50": round(figures["one"]["p50_ms"] / figures["bare"]["p50_ms"], 2),
        "arrow_256_rows": figures["arrow"],
        "forward_256_rows": figures["forward"],
        "ratio_arrow_p50": round(figures["arrow"]["p50_ms"] / figures["forward"]["p50_ms"], 2),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(Path(folder)), indent=1)
    Path(__file__).with_name("results").joinpath("serving.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
