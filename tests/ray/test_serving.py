"""The endpoints through a real Ray Serve instance and real sockets."""

import asyncio
import contextlib
import os
import select
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from ray import serve

from hourglass.cluster.connect import connection
from hourglass.config.serve import SERVE, ServeFile, ServeSpec
from hourglass.inference.predictor import Predictor
from hourglass.serving.app import build
from hourglass.serving.run import deployed
from hourglass.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import serving_kit as kit

COLUMNS = tuple("abcdef")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hgs", dir="/tmp"))  # short: Ray makes sockets below
    os.environ |= {"HOURGLASS_HOME": str(folder / "home"), "HOURGLASS_SERVE_TOKEN": kit.TOKEN}
    os.environ["HOURGLASS_TEMP_DIR"] = str(folder / "r")
    kit.save_model(folder / "plain", columns=COLUMNS)
    kit.save_model(folder / "image", vector="image", width=64, dtype="uint8", seed=2)
    with connection(cpus=2):
        yield folder
        serve.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(home: Path, *names: str, **args: Any) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = [{"name": name, "uri": str(home / name)} for name in names]
    file: ServeFile = SERVE.validate_python(
        {
            "http_options": {"port": port},
            "applications": [
                {
                    "import_path": "hourglass.serving.app:build",
                    "args": {"models": models, "num_cpus": 0.3, **args},
                }
            ],
        }
    )
    with deployed(file, Settings()) as url:
        yield url


def rows(count: int, width: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((count, width)) * 255).astype(dtype)


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with running(home, "plain", "image", request_timeout_s=5.0) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=kit.BEARER, timeout=30.0) as client:
        yield client


def vectors(matrix: np.ndarray) -> bytes:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    return kit.arrow_stream(pa.table({"image": lists}))


def columns(matrix: np.ndarray) -> bytes:
    return kit.arrow_stream(pa.table({name: matrix[:, i] for i, name in enumerate(COLUMNS)}))


def column(answer: httpx.Response, name: str) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.stack(kit.arrow_table(answer.content)[name].to_numpy())


def test_arrow_answers_equal_the_predictor_bit_for_bit(home: Path, client: httpx.Client) -> None:
    images, predictor = rows(300, 64, "uint8"), Predictor.load(str(home / "image"))

    def answer_of(endpoint: str) -> httpx.Response:
        url = f"/models/image/{endpoint}"
        return client.post(url, content=vectors(images), headers=kit.ARROW)

    assert np.array_equal(column(answer_of("encode"), "code"), predictor.encode(images))
    assert np.array_equal(column(answer_of("reconstruct"), "image"), predictor.reconstruct(images))
    hashes = kit.arrow_table(answer_of("hash").content)["hash"].to_pylist()
    assert hashes == [row.tobytes() for row in predictor.hash(images)]
    scores = predictor.score(images)
    assert np.array_equal(column(answer_of("anomaly"), "score"), scores.score)
    assert np.array_equal(column(answer_of("anomaly"), "is_anomaly"), scores.is_anomaly)


def test_json_answers_equal_the_predictor(home: Path, client: httpx.Client) -> None:
    matrix, predictor = rows(40, 6), Predictor.load(str(home / "plain"))
    body = {"rows": matrix.tolist()}
    scores = predictor.score(matrix, feature_errors=True)

    def answer_of(endpoint: str) -> Any:
        answer = client.post(f"/models/plain/{endpoint}", json=body)
        assert answer.headers["x-model-digest"] == predictor.artifact.digest
        assert answer.headers["x-model-version"] == predictor.artifact.digest[:12]
        tree = answer.json()
        assert tree["digest"] == predictor.artifact.digest
        return tree

    np.testing.assert_allclose(answer_of("encode")["codes"], scores.code, rtol=1e-6)
    np.testing.assert_allclose(answer_of("anomaly")["scores"], scores.score, rtol=1e-6)
    np.testing.assert_allclose(
        answer_of("reconstruct")["rows"], predictor.reconstruct(matrix), rtol=1e-6
    )
    assert answer_of("hash")["hashes"] == [row.tobytes().hex() for row in scores.hash]
    detailed = answer_of("anomaly?feature_errors=6")
    for row, total in zip(detailed["feature_errors"], detailed["scores"], strict=True):
        assert sum(part["error"] for part in row) == pytest.approx(total, rel=1e-5)
        assert [part["error"] for part in row] == sorted((p["error"] for p in row), reverse=True)
    made = predictor.reconstruct(matrix)
    for row, expected in zip(detailed["feature_errors"], made, strict=True):
        values = {part["feature"]: part["expected"] for part in row}
        np.testing.assert_allclose([values[name] for name in predictor.feature_names], expected)


@pytest.mark.parametrize("size", [1, 7, 256])
def test_a_row_gets_the_same_bits_in_any_company(client: httpx.Client, size: int) -> None:
    matrix = rows(256, 6)
    everything = client.post("/models/plain/anomaly", content=columns(matrix), headers=kit.ARROW)
    part = client.post("/models/plain/anomaly", content=columns(matrix[:size]), headers=kit.ARROW)
    assert np.array_equal(column(part, "score"), column(everything, "score")[:size])


async def _gather(url: str, requests: list[tuple[str, bytes, dict[str, str]]]) -> Any:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60.0) as client:
        return await asyncio.gather(
            *(client.post(u, content=b, headers={**kit.BEARER, **h}) for u, b, h in requests)
        )


def test_requests_answered_together_are_not_mixed_up(home: Path, url: str) -> None:
    plain, image = (Predictor.load(str(home / name)) for name in ("plain", "image"))
    tables = [rows(1 + i % 5, 6, seed=i) for i in range(15)]
    pictures = [rows(1 + i % 5, 64, "uint8", seed=i) for i in range(15)]
    requests = [("/models/plain/encode", columns(matrix), kit.ARROW) for matrix in tables]
    requests += [("/models/image/encode", vectors(matrix), kit.ARROW) for matrix in pictures]
    expected = [plain.encode(matrix) for matrix in tables]
    expected += [image.encode(matrix) for matrix in pictures]
    for codes, answer in zip(expected, asyncio.run(_gather(url, requests)), strict=True):
        assert np.array_equal(column(answer, "code"), codes)


def test_lists_and_metadata(client: httpx.Client) -> None:
    names = [model["model"] for model in client.get("/models").json()["models"]]
    assert names == ["plain", "image"]
    metadata = client.get("/models/image").json()
    assert (metadata["width"], metadata["dtype"], metadata["code_width"]) == (64, "uint8", 3)
    assert "/models/{name}/encode" in client.get("/openapi.json").json()["paths"]
    assert "swagger" in client.get("/docs").text


def test_only_health_and_docs_answer_without_a_token(url: str) -> None:
    body = {"rows": rows(1, 6).tolist()}
    with httpx.Client(base_url=url) as stranger:
        assert stranger.post("/models/plain/encode", json=body).status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert stranger.post("/models/plain/encode", json=body, headers=wrong).status_code == 401
        assert stranger.get("/models").status_code == 401
        assert stranger.get("/health/live").json() == {"status": "live"}
        assert stranger.get("/health/ready").json() == {"status": "ready"}
        assert stranger.post("/models/plain/encode", json=body, headers=kit.BEARER).is_success


def raw(url: str, content: bytes) -> bytes:
    """What comes back for these very bytes, until the end or 5 s of silence."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5.0) as connection:
        connection.sendall(content)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while b"\r\n\r\n" not in answer:
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
    return answer


HEAD = b"POST /models/plain/encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
TOKEN_LINE = f"Authorization: Bearer {kit.TOKEN}\r\n".encode()
RAW = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "401 before the body": (HEAD + b"Content-Length: 1073741824\r\n\r\n", 401),
    "413 before the body": (HEAD + TOKEN_LINE + b"Content-Length: 1073741824\r\n\r\n", 413),
    "negative length": (HEAD + TOKEN_LINE + b"Content-Length: -5\r\n\r\n", 400),
    "length and chunks": (
        HEAD + TOKEN_LINE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "bad chunk": (HEAD + TOKEN_LINE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "split header": (HEAD + TOKEN_LINE + b"X-A: 1\r\n X-B\r\n\r\n", 400),
    "id not UTF-8": (HEAD + TOKEN_LINE + b"X-Request-Id: \xff\r\nContent-Length: 0\r\n\r\n", 400),
    "deadline not UTF-8": (
        HEAD + TOKEN_LINE + b"X-Request-Timeout-Seconds: \xff\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    "session not UTF-8": (
        HEAD + TOKEN_LINE + b"X-Session-Id: \xff\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    "gzip": (HEAD + TOKEN_LINE + b"Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", 415),
    "no body": (HEAD + TOKEN_LINE + b"Content-Length: 0\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_on_the_wire(url: str, client: httpx.Client, name: str) -> None:
    content, status = RAW[name]
    good = {"rows": rows(2, 6).tolist()}
    before = client.post("/models/plain/encode", json=good)
    started = time.perf_counter()
    answer = raw(url, content)
    assert time.perf_counter() - started < 4.0
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert kit.TOKEN.encode() not in answer
    after = client.post("/models/plain/encode", json=good)
    assert after.status_code == 200
    assert before.content == after.content


def test_a_stream_without_a_length_is_cut_at_the_limit(url: str) -> None:
    """Sends until somebody answers: how much had to be taken before the refusal came."""
    host, port = url.removeprefix("http://").split(":")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(HEAD + TOKEN_LINE + b"Transfer-Encoding: chunked\r\n\r\n")
        sent, started = 0, time.perf_counter()
        while sent < 2**30 and not select.select([connection], [], [], 0.002)[0]:
            connection.sendall(chunk)
            sent += 65536
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 2**27
    assert time.perf_counter() - started < 5.0


@pytest.fixture(scope="module")
def slow(home: Path, url: str) -> Iterator[dict[str, str]]:
    """Two more applications whose every answer takes half a second: bounded queue, and not."""
    urls = {}
    for name, queued in (("bounded", 2), ("unbounded", "unbounded")):
        args = {
            "models": [{"name": name, "uri": str(home / "plain")}],
            "num_cpus": 0.3,
            "batch_wait_s": 0.5,
            "max_ongoing_requests": 1,
            "max_queued_requests": queued,
            "request_timeout_s": 30.0,
        }
        serve.run(build(ServeSpec.model_validate(args)), name=name, route_prefix=f"/{name}")
        urls[name] = f"{url}/{name}/models/{name}/encode"
    yield urls
    for name in urls:
        serve.delete(name)


def flood(url: str) -> list[httpx.Response]:
    requests = [(url, columns(rows(1, 6)), kit.ARROW)] * 8
    return list(asyncio.run(_gather("", requests)))


def test_a_full_queue_is_answered_at_once(slow: dict[str, str]) -> None:
    answers = flood(slow["bounded"])
    turned_away = [answer for answer in answers if answer.status_code == 429]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(turned_away) + len(served) == 8
    assert 1 <= len(served) < 8
    for answer in turned_away:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["class"] == "Overloaded"


def test_negative_control_without_a_bound_all_wait(slow: dict[str, str]) -> None:
    assert {answer.status_code for answer in flood(slow["unbounded"])} == {200}


def test_the_deadline_of_the_caller(slow: dict[str, str]) -> None:
    def answer_of(seconds: str) -> httpx.Response:
        headers = {**kit.BEARER, **kit.ARROW, "x-request-timeout-seconds": seconds}
        return httpx.post(slow["bounded"], content=columns(rows(1, 6)), headers=headers)

    started = time.perf_counter()
    late = answer_of("0.25")
    assert late.status_code == 408
    assert time.perf_counter() - started < 0.5
    time.sleep(0.6)
    assert answer_of("20").status_code == 200


def test_one_row_latency(client: httpx.Client) -> None:
    """A report, not a promise: `pytest -s` prints it."""
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        assert client.post("/models/plain/encode", json={"rows": rows(1, 6).tolist()}).is_success
        seconds.append(time.perf_counter() - started)
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    print(f"one row over HTTP: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def test_serve_is_healthy_after_all_that(client: httpx.Client, slow: dict[str, str]) -> None:
    for application in serve.status().applications.values():
        assert application.status == "RUNNING"
        assert {d.status for d in application.deployments.values()} == {"HEALTHY"}
    assert client.get("/health/ready").status_code == 200
