"""Endpoints are declared in one place: a new one here gets its route, options, formats and docs."""

import asyncio
import pickle
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hourglass.inference.endpoints import (
    ENDPOINTS,
    Answer,
    Array,
    Arrays,
    Endpoint,
    ModelMetadata,
    Option,
    Options,
)
from hourglass.inference.predictor import Predictor
from hourglass.inference.pyfunc import Pyfunc
from hourglass.serving.answers import ModelRequest, answer_all

sys.path.insert(0, str(Path(__file__).parent))
import serving_kit as kit

COLUMNS = tuple("abcdef")


class Norms(Answer):
    """Euclidean norms of the codes, and the largest units on request."""

    norms: list[float]
    largest: list[list[int]] | None = None
    code_width: int


def compute(predictor: Predictor, rows: Array, options: Collection[str]) -> Arrays:
    code = predictor.encode(rows)
    arrays = {"norms": np.linalg.norm(code, axis=1)}
    return arrays | ({"largest": np.argsort(-code, axis=1)} if "units" in options else {})


def select(arrays: Arrays, options: Options) -> Arrays:
    if "units" not in options:
        return arrays
    return arrays | {"largest": arrays["largest"][:, : options["units"]]}


def code_width(metadata: ModelMetadata) -> int:
    return metadata.code_width


NORM = Endpoint(
    "norm",
    Norms,
    compute,
    options=(Option("units", "Number of units to report.", code_width),),
    select=select,
    fields=("code_width",),
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> kit.Local:
    folder = tmp_path_factory.mktemp("models") / "plain"
    kit.save_model(folder, columns=COLUMNS)
    return kit.Local({"plain": Predictor.load(str(folder))})


@pytest.fixture(scope="module")
def rows() -> Array:
    return (np.random.default_rng(0).random((5, 6)) * 255).astype("float32")


def send(backend: kit.Local, path: str, media: dict[str, str] | None = None, **body: Any) -> Any:
    async def request() -> httpx.Response:
        async with kit.client(backend, [*ENDPOINTS, NORM]) as client:
            headers = {**kit.BEARER, **(media or {})}
            return await client.request("POST" if body else "GET", path, headers=headers, **body)

    return asyncio.run(request())


def arrow(rows: Array) -> bytes:
    table = kit.pa.table({name: rows[:, at] for at, name in enumerate(COLUMNS)})
    return kit.arrow_stream(table)


def test_a_new_endpoint_answers_json(backend: kit.Local, rows: Array) -> None:
    answer = send(backend, "/models/plain/norm?units=2", json={"rows": rows.tolist()})
    assert answer.status_code == 200, answer.text
    found = Norms.model_validate_json(answer.content)
    code = backend.predictors["plain"].encode(rows)
    np.testing.assert_array_equal(found.norms, np.linalg.norm(code, axis=1))
    assert found.largest == np.argsort(-code, axis=1)[:, :2].tolist()
    assert (found.model, found.code_width) == ("plain", 3)


def test_a_new_endpoint_answers_arrow(backend: kit.Local, rows: Array) -> None:
    answer = send(backend, "/models/plain/norm", kit.ARROW, content=arrow(rows))
    assert answer.status_code == 200, answer.text
    table = kit.arrow_table(answer.content)
    code = backend.predictors["plain"].encode(rows)
    assert table.column_names == ["norms"]
    np.testing.assert_array_equal(table["norms"].to_numpy(), np.linalg.norm(code, axis=1))
    assert table.schema.metadata[b"model"] == b"plain"
    assert table.schema.metadata[b"code_width"] == b"3"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("units=4", "units: allowed is one number from 1 to 3"),
        ("units=1&units=1", "units: allowed is one number from 1 to 3"),
        ("top=1", "unknown query parameter; allowed is units"),
    ],
)
def test_options_of_a_new_endpoint_are_checked(
    backend: kit.Local, rows: Array, query: str, message: str
) -> None:
    answer = send(backend, f"/models/plain/norm?{query}", json={"rows": rows.tolist()})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == message


def test_a_new_endpoint_is_documented(backend: kit.Local) -> None:
    document = send(backend, "/openapi.json").json()
    operation = document["paths"]["/models/{name}/norm"]["post"]
    assert operation["description"] == Norms.__doc__
    assert {parameter["name"] for parameter in operation["parameters"]} == {"name", "units"}
    answer = operation["responses"]["200"]["content"]
    assert answer["application/json"]["schema"] == {"$ref": "#/components/schemas/Norms"}
    assert "application/vnd.apache.arrow.stream" in answer


def test_negative_control_the_endpoint_is_absent_without_its_declaration(
    backend: kit.Local, rows: Array
) -> None:
    async def request() -> httpx.Response:
        async with kit.client(backend) as client:
            body = {"rows": rows.tolist()}
            return await client.post("/models/plain/norm", headers=kit.BEARER, json=body)

    assert asyncio.run(request()).status_code == 404


def test_requests_in_one_batch_keep_their_own_options(backend: kit.Local, rows: Array) -> None:
    predictor = backend.predictors["plain"]
    requests = [
        ModelRequest(NORM, rows[:2], {"units": 1}),
        ModelRequest(ENDPOINTS[0], rows[:3]),
        ModelRequest(NORM, rows[2:], {"units": 3}),
        ModelRequest(NORM, rows[:1]),
    ]
    requests = pickle.loads(pickle.dumps(requests))  # as they reach a replica
    first, codes, second, third = answer_all(predictor, requests)
    assert (first["largest"].shape, second["largest"].shape) == ((2, 1), (3, 3))
    assert list(third) == ["norms"]
    np.testing.assert_array_equal(codes["code"], predictor.encode(rows[:3]))
    together = np.concatenate([first["norms"], second["norms"]])
    np.testing.assert_array_equal(together, np.linalg.norm(predictor.encode(rows), axis=1))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_json_answers_match_their_documented_model(
    backend: kit.Local, rows: Array, endpoint: Endpoint
) -> None:
    body = {"rows": rows.tolist()}
    every = "&".join(f"{option.name}=2" for option in endpoint.options)
    for query in ("", f"?{every}"):
        answer = send(backend, f"/models/plain/{endpoint.name}{query}", json=body)
        assert answer.status_code == 200, answer.text
        assert endpoint.response.model_validate_json(answer.content).model == "plain"


def test_json_and_arrow_name_the_same_features(backend: kit.Local, rows: Array) -> None:
    path = "/models/plain/anomaly?feature_errors=2"
    parts = send(backend, path, json={"rows": rows.tolist()}).json()["feature_errors"]
    table = kit.arrow_table(send(backend, path, kit.ARROW, content=arrow(rows)).content)
    for column, key in (
        ("features", "feature"),
        ("feature_errors", "error"),
        ("expected", "expected"),
        ("imputed", "imputed"),
    ):
        assert table[column].to_pylist() == [[part[key] for part in row] for row in parts]
    predictor = backend.predictors["plain"]
    assert table.schema.metadata[b"threshold"] == repr(predictor.threshold).encode()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_mlflow_answers_as_the_endpoint(
    backend: kit.Local, rows: Array, endpoint: Endpoint
) -> None:
    predictor = backend.predictors["plain"]
    answer = Pyfunc(predictor).predict(rows, {"output": endpoint.name})
    np.testing.assert_array_equal(answer, getattr(predictor, endpoint.name)(rows))
