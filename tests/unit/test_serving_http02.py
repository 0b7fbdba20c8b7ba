"""HTTP-02: hostile requests, each rejected with its own 4xx and message, and without side effects.

In process, no sockets: what a client's bytes can reach after Ray's proxy has framed them.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pytest

from hourglass.data.decode import to_matrix
from hourglass.inference.predictor import Predictor
from hourglass.serving import middleware
from hourglass.serving.arrow import decode_arrow
from hourglass.serving.http import create_app
from hourglass.serving.proxy import PlainHeaders

sys.path.insert(0, str(Path(__file__).parent))
import serving_kit as kit

COLUMNS = tuple("abcdef")
ROW = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
RECORD = dict(zip(COLUMNS, ROW, strict=True))
MAX_ROWS, BODY_BYTES = 8, 8192


class Case(NamedTuple):
    name: str
    body: bytes
    status: int
    message: str
    url: str = "/models/plain/encode"
    headers: dict[str, Any] = {}
    method: str = "POST"


def rows(*cells: str, name: str = "rows") -> bytes:
    return f'{{"{name}": [[{", ".join(cells)}]]}}'.encode()


def cell(text: str) -> bytes:
    return rows("1", "2", text, "4", "5", "6")


def record(**changes: Any) -> bytes:
    return json.dumps({"rows": [{**RECORD, **changes}]}).encode()


def deep(levels: int, tail: str = "") -> bytes:
    return ('{"rows": ' + "[" * (levels - 1) + tail + "]" * (levels - 1) + "}").encode()


def table(**columns: Any) -> pa.Table:
    return pa.table({name: pa.array([ROW[i]]) for i, name in enumerate(COLUMNS)} | columns)


def stream(arrow: pa.Table, **options: Any) -> bytes:
    return kit.arrow_stream(arrow, **options)


GOOD = json.dumps({"rows": [ROW]}).encode()
GOOD_ARROW = stream(table())
VECTORS = pa.table({"image": pa.array([[1] * 6], pa.list_(pa.uint8(), 6))})
EXTENSION = pa.schema(
    [pa.field("a", pa.binary(16), metadata={"ARROW:extension:name": "arrow.uuid"})]
)
ARROW, PLAIN = kit.ARROW, kit.JSON
IMAGE, GAPS = "/models/image/encode", "/models/gaps/encode"

JSON_CASES = [
    Case("empty body", b"", 400, "not JSON"),
    Case("space", b"  \n", 400, "not JSON"),
    Case("not JSON", b"rows", 400, "not JSON"),
    Case("cut", GOOD[:-3], 400, "not JSON"),
    Case("rest after the end", GOOD + b"1", 400, "extra data"),
    Case("two documents", GOOD + GOOD, 400, "extra data"),
    Case("single quotes", b"{'rows': [[1]]}", 400, "not JSON"),
    Case("trailing comma", b'{"rows": [[1,2,3,4,5,6],]}', 400, "not JSON"),
    Case("comment", b'{"rows": [[1,2,3,4,5,6]] /* x */}', 400, "not JSON"),
    Case("leading zero", cell("01"), 400, "not JSON"),
    Case("plus sign", cell("+1"), 400, "not JSON"),
    Case("hexadecimal", cell("0x10"), 400, "not JSON"),
    Case("bare point", cell(".5"), 400, "not JSON"),
    Case("control character", b'{"ro\x01ws": []}', 400, "not JSON"),
    Case("NUL", b'{"rows": [[1,2,3,4,5,6]]}\x00', 400, "not JSON"),
    Case("invalid UTF-8", b'{"rows": [["\xff"]]}', 400, "byte 12: not UTF-8"),
    Case("overlong UTF-8", b'{"rows": [["\xc0\xaf"]]}', 400, "not UTF-8"),
    Case("UTF-8 surrogate", b'{"rows": [["\xed\xa0\x80"]]}', 400, "not UTF-8"),
    Case("UTF-16", GOOD.decode().encode("utf-16-le"), 400, "not JSON"),
    Case("UTF-16 with mark", GOOD.decode().encode("utf-16"), 400, "not UTF-8"),
    Case("UTF-32", GOOD.decode().encode("utf-32-be"), 400, "not JSON"),
    Case("byte order mark", b"\xef\xbb\xbf" + GOOD, 400, "byte order mark"),
    Case("depth 17", deep(17), 400, "deeper than the 16 levels"),
    Case("depth 17 unclosed", b"[" * 17, 400, "deeper than the 16 levels"),
    Case("depth 2,000", b"[" * 2000 + b"]" * 2000, 400, "deeper than the 16 levels"),
    Case("deep objects", b'{"a":' * 17 + b"1" + b"}" * 17, 400, "deeper than the 16 levels"),
    Case("depth 16", deep(16), 422, "found 1 values"),
    Case("brackets in a string", rows('"' + "[" * 99 + '"'), 422, "found 1 values"),
    Case("many escapes", b'\\"' * 2000, 400, "not JSON"),
    Case("unclosed string", b'{"rows": "' + b"[" * 99, 400, "not JSON"),
    Case("null", b"null", 422, 'expected {"rows"'),
    Case("number", b"1", 422, 'expected {"rows"'),
    Case("string", b'"rows"', 422, 'expected {"rows"'),
    Case("list", b"[[1,2,3,4,5,6]]", 422, "found a list of 1"),
    Case("empty object", b"{}", 422, '"rows" is missing'),
    Case("other field", rows("1", name="row"), 422, 'unknown field "row"'),
    Case("further field", b'{"rows": [[1,2,3,4,5,6]], "url": "x"}', 422, 'unknown field "url"'),
    Case("rows twice", b'{"rows": [[1]], "rows": [[1,2,3,4,5,6]]}', 400, '"rows" is given twice'),
    Case("rows null", b'{"rows": null}', 422, "found null, expected a list"),
    Case("rows number", b'{"rows": 5}', 422, "expected a list"),
    Case("rows object", b'{"rows": {"a": [1]}}', 422, "found an object of 1"),
    Case("0 rows", b'{"rows": []}', 422, "found 0 rows"),
    Case("9 rows", json.dumps({"rows": [ROW] * 9}).encode(), 413, "found 9 rows, allowed are 8"),
    Case("many values", b'{"rows": [[' + b"1," * 99 + b"1]]}", 413, "found 100 values"),
    Case("many empty rows", b'{"rows": [' + b"[]," * 99 + b"[]]}", 413, "found 100 values"),
    Case("flat rows", b'{"rows": [1,2,3,4,5,6]}', 422, "row 0: found 1.0, expected a list"),
    Case("empty row", b'{"rows": [[]]}', 422, "row 0: found 0 values, the model expects 6"),
    Case("narrow row", rows("1", "2"), 422, "row 0: found 2 values, the model expects 6"),
    Case("wide row", rows(*"1234567"), 422, "row 0: found 7 values, the model expects 6"),
    Case("second row narrow", b'{"rows": [[1,2,3,4,5,6],[1]]}', 422, "row 1: found 1 values"),
    Case("row null", b'{"rows": [null]}', 422, "row 0: found null"),
    Case("row string", b'{"rows": ["123456"]}', 422, 'row 0: found "123456"'),
    Case("three levels", b'{"rows": [[[1],2,3,4,5,6]]}', 422, "row 0, 'a': found a list of 1"),
    Case("NaN", cell("NaN"), 422, "row 0, 'c': found NaN, which is not JSON"),
    Case("Infinity", cell("Infinity"), 422, "row 0, 'c': found Infinity"),
    Case("-Infinity", cell("-Infinity"), 422, "row 0, 'c': found -Infinity"),
    Case("nan in small", cell("nan"), 400, "not JSON"),
    Case("1e999", cell("1e999"), 422, "row 0, 'c': found a number beyond"),
    Case("-1e999", cell("-1e999"), 422, "row 0, 'c': found a number beyond"),
    Case("1e39", cell("1e39"), 422, "row 0, 'c': found 1e+39, allowed are numbers up to 3.4e+38"),
    Case("5,000 digits", cell("9" * 3900), 422, "row 0, 'c': found a number beyond"),
    Case("400 digits", cell("1" + "0" * 400), 422, "row 0, 'c': found a number beyond"),
    Case("long exponent", cell("1e" + "9" * 999), 422, "row 0, 'c': found a number beyond"),
    Case("true", cell("true"), 422, "row 0, 'c': found true, allowed are numbers; write 1"),
    Case("false", cell("false"), 422, "row 0, 'c': found false"),
    Case("string number", cell('"1"'), 422, "row 0, 'c': found \"1\", allowed are numbers"),
    Case("empty string", cell('""'), 422, "row 0, 'c': found \"\""),
    Case("string NaN", cell('"NaN"'), 422, "row 0, 'c': found \"NaN\""),
    Case("object cell", cell('{"a": 1}'), 422, "row 0, 'c': found an object of 1"),
    Case("lone surrogate", cell('"\\ud800"'), 422, 'found "\\\\ud800"'),
    Case("long string", cell('"' + "x" * 3000 + '"'), 422, 'xxx"...'),
    Case("null cell", cell("null"), 422, "row 0, 'c': found null; the model was trained with"),
    Case("unknown column", record(g=1), 422, 'row 0: unknown column "g"'),
    Case("near column", record(aa=1), 422, "did you mean 'a'?"),
    Case("wrong case", record(A=1), 422, 'unknown column "A"'),
    Case("surrogate column", record(**{"\ud800": 1}), 422, 'unknown column "\\\\ud800"'),
    Case("missing column", b'{"rows": [{"a": 1}]}', 422, "row 0: column 'b' is missing"),
    Case("empty record", b'{"rows": [{}]}', 422, "row 0: column 'a' is missing"),
    Case("column twice", b'{"rows": [{"a": 1,' + record()[11:], 400, 'row 0: column "a" is given'),
    Case("record null", record(b=None), 422, "row 0, 'b': found null"),
    Case("record bool", record(b=True), 422, "row 0, 'b': found true"),
    Case("record list", record(b=[1]), 422, "row 0, 'b': found a list of 1"),
    Case("record after list", b'{"rows": [[1,2,3,4,5,6],' + record()[10:], 422, "use one form"),
    Case("list after record", record()[:-2] + b", [1,2,3,4,5,6]]}", 422, "use one form"),
    Case("pixel 256", cell("256"), 422, "row 0, 'image[2]': found 256, allowed are whole", IMAGE),
    Case("pixel -1", cell("-1"), 422, "row 0, 'image[2]': found -1", IMAGE),
    Case("pixel 0.5", cell("0.5"), 422, "found 0.5, allowed are whole numbers", IMAGE),
    Case("vector null", b'{"rows": [{"image": null}]}', 422, "found null, expected", IMAGE),
    Case("vector number", b'{"rows": [{"image": 5}]}', 422, "expected a list of 6", IMAGE),
    Case("vector short", b'{"rows": [{"image": [1]}]}', 422, "found 1 values", IMAGE),
    Case("vector name", b'{"rows": [{"imag": [1]}]}', 422, "did you mean 'image'?", IMAGE),
    Case("NaN where null may be", cell("NaN"), 422, "write null for a missing cell", GAPS),
    Case("1e999 where null may be", cell("1e999"), 422, "found a number beyond", GAPS),
]

HEAD_CASES = [
    Case("no token", GOOD, 401, "bearer token", headers={"authorization": None}),
    Case("empty token", GOOD, 401, "bearer token", headers={"authorization": "Bearer "}),
    Case("wrong token", GOOD, 401, "bearer token", headers={"authorization": "Bearer wrong"}),
    Case("cut token", GOOD, 401, "bearer", headers={"authorization": f"Bearer {kit.TOKEN[:-1]}"}),
    Case("long token", GOOD, 401, "bearer", headers={"authorization": f"Bearer {kit.TOKEN}x"}),
    Case("Basic", GOOD, 401, "bearer token", headers={"authorization": f"Basic {kit.TOKEN}"}),
    Case("bare token", GOOD, 401, "bearer token", headers={"authorization": kit.TOKEN}),
    Case(
        "non-ASCII token", GOOD, 401, "bearer token", headers={"authorization": b"Bearer \xff\xfe"}
    ),
    Case(
        "token in the URL",
        GOOD,
        401,
        "bearer",
        f"/models/plain/encode?token={kit.TOKEN}",
        {"authorization": None},
    ),
    Case("unknown path without token", b"", 401, "bearer", "/admin", {"authorization": None}),
    Case("list without token", b"", 401, "bearer", "/models", {"authorization": None}, "GET"),
    Case("gzip", GOOD, 415, "content-encoding", headers={"content-encoding": "gzip"}),
    Case("deflate", GOOD, 415, "content-encoding", headers={"content-encoding": "deflate"}),
    Case("br", GOOD, 415, "content-encoding", headers={"content-encoding": "br"}),
    Case(
        "gzip, identity",
        GOOD,
        415,
        "content-encoding",
        headers={"content-encoding": "gzip, identity"},
    ),
    Case("no content type", GOOD, 415, "content-type", headers={"content-type": None}),
    Case("text", GOOD, 415, "content-type", headers={"content-type": "text/plain"}),
    Case("form", GOOD, 415, "content-type", headers={"content-type": "multipart/form-data"}),
    Case("pickle", GOOD, 415, "content-type", headers={"content-type": "application/x-pickle"}),
    Case(
        "latin-1",
        GOOD,
        415,
        "content-type",
        headers={"content-type": "application/json; charset=latin-1"},
    ),
    Case("Accept text", GOOD, 406, "accept", headers={"accept": "text/html"}),
    Case(
        "wrong length",
        GOOD,
        413,
        "larger than the 8192 bytes",
        headers={"content-length": str(2**40)},
    ),
    Case("huge length", GOOD, 413, "larger than", headers={"content-length": "9" * 500}),
    Case("large body", b" " * 9000, 413, "larger than the 8192 bytes allowed"),
    Case("long URL", GOOD, 414, "found a URL of", "/models/" + "x" * 3000),
    Case("many headers", GOOD, 431, "headers", headers={f"x-{i}": "1" for i in range(99)}),
    Case("64 KiB header", GOOD, 431, "headers", headers={"x-long": "x" * 65536}),
    Case("deadline 0", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": "0"}),
    Case("deadline -1", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": "-1"}),
    Case("deadline nan", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": "nan"}),
    Case("deadline inf", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": "inf"}),
    Case("deadline text", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": "soon"}),
    Case("deadline bytes", GOOD, 400, "above 0", headers={"x-request-timeout-seconds": b"\xff"}),
    Case("unknown model", GOOD, 404, "did you mean 'plain'?", "/models/plane/encode"),
    Case("model with dots", GOOD, 404, "no such path", "/models/..%2f..%2fetc/encode"),
    Case("model in bytes", GOOD, 404, "no such model", "/models/%ff%00/encode"),
    Case("unknown endpoint", GOOD, 404, "no such path", "/models/plain/train"),
    Case("unknown path", GOOD, 404, "no such path", "/admin"),
    Case("slash at the end", GOOD, 404, "no such path", "/models/plain/encode/"),
    Case("GET", b"", 405, "other methods", method="GET"),
    Case("PUT", GOOD, 405, "other methods", method="PUT"),
    Case("DELETE", b"", 405, "other methods", "/models/plain", method="DELETE"),
    Case("OPTIONS", b"", 405, "other methods", method="OPTIONS"),
    Case("unknown method", b"", 405, "other methods", method="BREW"),
    Case("unknown query", GOOD, 422, "unknown query", "/models/plain/encode?a=1"),
    Case("unknown query of anomaly", GOOD, 422, "unknown query", "/models/plain/anomaly?top=1"),
    Case("errors 0", GOOD, 422, "from 1 to 6", "/models/plain/anomaly?feature_errors=0"),
    Case("errors 7", GOOD, 422, "from 1 to 6", "/models/plain/anomaly?feature_errors=7"),
    Case("errors text", GOOD, 422, "from 1 to 6", "/models/plain/anomaly?feature_errors=all"),
    Case(
        "errors long", GOOD, 422, "from 1 to 6", "/models/plain/anomaly?feature_errors=" + "9" * 900
    ),
    Case(
        "errors twice",
        GOOD,
        422,
        "one number",
        "/models/plain/anomaly?feature_errors=1&feature_errors=2",
    ),
    Case(
        "errors in Arabic digits",
        GOOD,
        422,
        "from 1 to 6",
        "/models/plain/anomaly?feature_errors=%D9%A1",
    ),
]

ARROW_CASES = [
    Case("empty stream", b"", 400, "Arrow"),
    Case("JSON as Arrow", GOOD, 400, "Arrow"),
    Case("zeros", bytes(64), 400, "Arrow"),
    Case("cut stream", GOOD_ARROW[:-40], 400, "Arrow"),
    Case("rest after the stream", GOOD_ARROW + b"more", 400, "4 bytes after its end"),
    Case("two streams", GOOD_ARROW * 2, 400, "bytes after its end"),
    Case("Arrow file", b"ARROW1\x00\x00" + GOOD_ARROW, 400, "Arrow"),
    Case("huge metadata", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64), 400, "Arrow"),
    Case("negative metadata", b"\xff\xff\xff\xff\xfe\xff\xff\xff" + bytes(64), 400, "Arrow"),
    Case("zstd", stream(table(), compression="zstd"), 422, "compressed buffers"),
    Case("lz4", stream(table(), compression="lz4"), 422, "compressed buffers"),
    Case("extension type", stream(EXTENSION.empty_table()), 422, "extension types"),
    Case("no columns", stream(pa.table({})), 422, "column 'a' is missing"),
    Case("no rows", stream(table().slice(0, 0)), 422, "found 0 rows"),
    Case("9 rows", stream(pa.concat_tables([table()] * 9)), 413, "found"),
    Case("unknown column", stream(table(g=pa.array([1]))), 422, 'unknown column "g"'),
    Case("missing column", stream(table().drop(["b"])), 422, "column 'b' is missing"),
    Case(
        "column twice",
        stream(pa.Table.from_arrays([pa.array([1.0])] * 2, ["a", "a"])),
        422,
        "twice",
    ),
    Case("string column", stream(table(a=pa.array(["1"]))), 422, "column 'a': found string"),
    Case("null column", stream(table(a=pa.nulls(1))), 422, "column 'a': found null"),
    Case("list column", stream(table(a=pa.array([[1.0]]))), 422, "column 'a': found list"),
    Case("struct column", stream(table(a=pa.array([{"x": 1}]))), 422, "column 'a': found struct"),
    Case("dictionary", stream(table(a=pa.array(["x"]).dictionary_encode())), 400, "dictionary"),
    Case("timestamp", stream(table(a=pa.array([0], pa.timestamp("s")))), 422, "found timestamp"),
    Case("NaN", stream(table(a=pa.array([float("nan")]))), 422, "row 0, 'a': found null"),
    Case("infinity", stream(table(a=pa.array([float("inf")]))), 422, "row 0, 'a': found inf"),
    Case("1e39", stream(table(a=pa.array([1e39]))), 422, "row 0, 'a': found 1e+39"),
    Case("null", stream(table(a=pa.array([None], pa.float32()))), 422, "row 0, 'a': found null"),
    Case("single numbers", GOOD_ARROW, 422, 'unknown column "a"', IMAGE),
    Case(
        "narrow vector",
        stream(pa.table({"image": pa.array([[1]], pa.list_(pa.uint8(), 1))})),
        422,
        "a list of 6",
        IMAGE,
    ),
    Case(
        "ragged vector", stream(pa.table({"image": [[1, 2]]})), 422, "row 0: found 2 values", IMAGE
    ),
    Case(
        "null vector",
        stream(pa.table({"image": pa.array([None, [1] * 6])})),
        422,
        "found null",
        IMAGE,
    ),
    Case(
        "null in a vector",
        stream(pa.table({"image": [[1, None, 3, 4, 5, 6]]})),
        422,
        "'image[1]'",
        IMAGE,
    ),
    Case(
        "pixel 300",
        stream(pa.table({"image": [[1, 2, 300, 4, 5, 6]]})),
        422,
        "'image[2]': found 300",
        IMAGE,
    ),
    Case("strings in a vector", stream(pa.table({"image": [["1"] * 6]})), 422, "found list", IMAGE),
    Case("vector of vectors", stream(pa.table({"image": [[[1]] * 6]})), 422, "found list", IMAGE),
]

CASES = [(case, PLAIN) for case in JSON_CASES + HEAD_CASES] + [(c, ARROW) for c in ARROW_CASES]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> kit.Local:
    folder = tmp_path_factory.mktemp("models")
    kit.save_model(folder / "plain", columns=COLUMNS)
    kit.save_model(folder / "gaps", columns=COLUMNS, missing="mean")
    kit.save_model(folder / "image", vector="image", dtype="uint8")
    return kit.Local({n: Predictor.load(str(folder / n)) for n in ("plain", "gaps", "image")})


def exchange(backend: kit.Local, case: Case, media: dict[str, str]) -> Any:
    headers = {**kit.BEARER, **media, **case.headers}
    headers = {name: value for name, value in headers.items() if value is not None}

    async def send() -> Any:
        limits = {"max_rows": MAX_ROWS, "body_bytes": BODY_BYTES}
        async with kit.client(backend, limits=limits) as client:
            good = {**kit.BEARER, **PLAIN}
            before = await client.post("/models/plain/encode", content=GOOD, headers=good)
            # httpx adds these on its own; a case that leaves one out means it.
            client.headers.pop("accept-encoding")
            request = client.build_request(
                case.method, case.url, content=case.body, headers=headers
            )
            answer = await client.send(request)
            after = await client.post("/models/plain/encode", content=GOOD, headers=good)
            return before, answer, after

    return asyncio.run(send())


def test_the_table_has_at_least_120_cases() -> None:
    assert len(CASES) >= 120


@pytest.mark.parametrize(
    ("case", "media"), CASES, ids=[f"{'arrow-' * (m is ARROW)}{c.name}" for c, m in CASES]
)
def test_hostile_request(backend: kit.Local, case: Case, media: dict[str, str]) -> None:
    before, answer, after = exchange(backend, case, media)
    assert answer.status_code == case.status, answer.text
    error = answer.json()["error"]
    assert sorted(error) == ["class", "message", "request_id"]
    assert case.message in error["message"].replace("\\u", "\\\\u"), error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert kit.TOKEN not in answer.text
    assert "Traceback" not in answer.text
    assert "/" + "tmp" not in answer.text
    assert len(answer.content) < 1500
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    assert before.status_code == after.status_code == 200
    assert before.content == after.content


ACCEPTED: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "list": ("/models/plain/encode", GOOD, PLAIN),
    "record": ("/models/plain/encode", record(), PLAIN),
    "record in another order": (
        "/models/plain/encode",
        json.dumps({"rows": [dict(reversed(RECORD.items()))]}).encode(),
        PLAIN,
    ),
    "whole numbers": ("/models/plain/encode", rows(*"123456"), PLAIN),
    "charset": ("/models/plain/encode", GOOD, {"content-type": "application/json; charset=UTF-8"}),
    "lower-case type": ("/models/plain/encode", GOOD, {"content-type": "APPLICATION/JSON"}),
    "identity": ("/models/plain/encode", GOOD, PLAIN | {"content-encoding": "identity"}),
    "eight rows": ("/models/plain/encode", json.dumps({"rows": [ROW] * 8}).encode(), PLAIN),
    "arrow": ("/models/plain/encode", GOOD_ARROW, ARROW),
    "arrow float32": (
        "/models/plain/encode",
        stream(table().cast(pa.schema([(n, pa.float32()) for n in COLUMNS]))),
        ARROW,
    ),
    "arrow bool": ("/models/plain/encode", stream(table(a=pa.array([True]))), ARROW),
    "null": (GAPS, cell("null"), PLAIN),
    "record null": (GAPS, record(b=None), PLAIN),
    "arrow null": (GAPS, stream(table(a=pa.array([None], pa.float64()))), ARROW),
    "vector": (IMAGE, rows(*"123456"), PLAIN),
    "vector record": (IMAGE, b'{"rows": [{"image": [1,2,3,4,5,255]}]}', PLAIN),
    "vector arrow": (IMAGE, stream(VECTORS), ARROW),
    "vector list": (IMAGE, stream(pa.table({"image": [[1, 2, 3, 4, 5, 6]]})), ARROW),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_good_request(backend: kit.Local, name: str) -> None:
    """Negative control of the table: allowed requests succeed."""
    url, body, media = ACCEPTED[name]
    _, answer, _ = exchange(backend, Case(name, body, 200, "", url), media)
    assert answer.status_code == 200, answer.text


def test_null_is_the_mean_of_the_column(backend: kit.Local) -> None:
    _, json_answer, _ = exchange(backend, Case("", cell("null"), 200, "", GAPS), PLAIN)
    expected = backend.predictors["gaps"].encode(
        np.array([[1, 2, np.nan, 4, 5, 6]], dtype=np.float32)
    )
    codes = np.array(json_answer.json()["codes"], dtype=np.float32)
    assert np.array_equal(codes, expected)
    assert np.isfinite(codes).all()


def mutate(random: np.random.Generator, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(random.integers(1, 5)):
        damaged[random.integers(len(damaged))] = random.integers(256)
    return bytes(
        damaged[: random.integers(1, len(damaged) + 1)] if random.random() < 0.2 else damaged
    )


@pytest.mark.parametrize(
    ("url", "body", "media"),
    [
        ("/models/plain/encode", GOOD, PLAIN),
        ("/models/plain/encode", record(), PLAIN),
        ("/models/plain/encode", GOOD_ARROW, ARROW),
        (IMAGE, stream(VECTORS), ARROW),
        (IMAGE, stream(pa.table({"image": [[1, 2, 3, 4, 5, 6]] * 3})), ARROW),
        (GAPS, stream(table(a=pa.array([None], pa.float32()))), ARROW),
    ],
)
def test_damaged_bodies_never_fail(
    backend: kit.Local, url: str, body: bytes, media: dict[str, str]
) -> None:
    random = np.random.default_rng(5)

    async def send() -> list[int]:
        async with kit.client(backend) as client:
            headers = {**kit.BEARER, **media}
            bodies = [mutate(random, body) for _ in range(300)]
            answers = [await client.post(url, content=b, headers=headers) for b in bodies]
            return [answer.status_code for answer in answers]

    statuses = asyncio.run(send())
    assert set(statuses) <= {200, 400, 413, 422}
    assert len(set(statuses)) > 1


def slow(seconds: float) -> Callable[..., Any]:
    async def answer(*_: Any) -> Any:
        await asyncio.sleep(seconds)
        raise RuntimeError(f"a fault with a secret path /home/secret and {kit.TOKEN}")

    return answer


def post(backend: kit.Local, headers: dict[str, str] | None = None, **spec: Any) -> Any:
    async def send() -> Any:
        async with kit.client(backend, **spec) as client:
            all_headers = {**kit.BEARER, **PLAIN, **(headers or {})}
            return await client.post("/models/plain/encode", content=GOOD, headers=all_headers)

    return asyncio.run(send())


def test_the_deadline_of_the_server(backend: kit.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "answer", slow(5))
    answer = post(backend, request_timeout_s=0.1)
    assert answer.status_code == 408
    assert answer.json()["error"]["class"] == "Timeout"


def test_the_deadline_of_the_caller(backend: kit.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "answer", slow(5))
    assert post(backend, {"x-request-timeout-seconds": "0.1"}).status_code == 408


def test_the_caller_cannot_lengthen_the_deadline(
    backend: kit.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "answer", slow(5))
    answer = post(backend, {"x-request-timeout-seconds": "999"}, request_timeout_s=0.1)
    assert answer.status_code == 408


def test_a_fault_leaks_nothing(
    backend: kit.Local, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "answer", slow(0))
    answer = post(backend)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["message"] == "the request failed; its id is in the server's log"
    assert "secret" not in answer.text
    assert kit.TOKEN not in answer.text
    assert error["request_id"] in caplog.text
    assert "RuntimeError" in caplog.text


def test_an_answer_that_overflows_is_refused_with_its_row(backend: kit.Local) -> None:
    body = json.dumps({"rows": [ROW, [3e38] * 6]}).encode()
    case = Case("overflow", body, 422, "", "/models/plain/anomaly")
    _, answer, _ = exchange(backend, case, PLAIN)
    if answer.status_code == 422:
        assert answer.json()["error"]["message"].startswith("row 1: the model's answer")
    else:  # float64 scores may hold the square of what float32 cannot
        assert np.isfinite(answer.json()["scores"]).all()


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        (json.dumps({"rows": [ROW] * 9}).encode(), {"max_rows": 8}, {"max_rows": 9}),
        (b" " * 9000 + GOOD, {"body_bytes": 9000}, {"body_bytes": 10000}),
        (deep(17), {"depth": 16}, {"depth": 17}),
    ],
)
def test_negative_control_the_limit_is_what_refuses(
    backend: kit.Local, body: bytes, low: dict[str, int], high: dict[str, int]
) -> None:
    async def send(limits: dict[str, int]) -> httpx.Response:
        async with kit.client(backend, limits=limits) as client:
            headers = {**kit.BEARER, **PLAIN}
            return await client.post("/models/plain/encode", content=body, headers=headers)

    refused, passed = asyncio.run(send(low)), asyncio.run(send(high))
    assert refused.status_code in (400, 413)
    assert passed.status_code == 200 or "found 1 values" in passed.text


def test_negative_control_without_the_middleware_a_request_needs_no_token(
    backend: kit.Local,
) -> None:
    app = create_app(kit.spec(), backend, middleware.fingerprint(kit.TOKEN))
    app.user_middleware.clear()

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/models/plain/encode", content=GOOD, headers=PLAIN)

    assert asyncio.run(send()).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "id_kept"),
    [
        ([(b"x-request-id", b"abc-1")], 200, True),
        ([(b"x-request-id", b"a b<script>")], 200, False),
        ([(b"x-request-id", b"\xff")], 400, False),
        ([(b"x-session-id", b"\xff")], 400, False),
        ([(b"user-agent", "ü".encode())], 200, False),
    ],
)
def test_headers_that_rays_proxy_must_not_see(
    headers: list[tuple[bytes, bytes]], status: int, id_kept: bool
) -> None:
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": headers}
    asyncio.run(PlainHeaders(app)(scope, lambda: None, send))
    assert (sent[0]["status"] if sent else 200) == status
    assert any(name == b"x-request-id" for name, _ in seen) is id_kept


@pytest.mark.parametrize("name", ["image", "gaps", "plain"])
def test_arrow_rows_equal_those_of_a_batch_job(backend: kit.Local, name: str) -> None:
    random = np.random.default_rng(3)
    matrix = (random.random((7, 6)) * 255).astype("uint8")
    if name == "image":
        rows_of = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 6)
        arrow = pa.table({"image": rows_of})
    else:
        arrow = pa.table({c: pa.array(matrix[:, i] / 7.0) for i, c in enumerate(COLUMNS)})
    if name == "gaps":
        holes = [1.0, None, 3.0, float("nan"), 5.0, float("inf"), 7.0]
        arrow = arrow.set_column(0, "a", pa.array(holes))
    metadata = backend.models[name]
    served = decode_arrow(stream(arrow), metadata, kit.spec().limits)
    scored, _ = to_matrix(arrow, metadata.features, "shard")
    assert served.dtype == scored.dtype
    finite = np.isfinite(scored)
    assert np.array_equal(np.isfinite(served), finite)
    assert np.array_equal(served[finite], scored[finite])
