"""Nearest neighbours: exact, in one order, by codes and by hashes."""

import sys
from typing import Any

import faiss
import numpy as np
import pytest

from hourglass.errors import DataError, HourglassError
from hourglass.inference import neighbours
from hourglass.inference.neighbours import Index, precision_at

RNG = np.random.default_rng(3)
TIED = RNG.integers(0, 3, (400, 3)).astype(np.float32)
FAR = (1000 + 0.1 * RNG.normal(size=(400, 8))).astype(np.float32)
SETS = {
    "normal": RNG.normal(size=(400, 8)).astype(np.float32),
    "tied": TIED,
    "far from 0": FAR,
    "one point": np.zeros((400, 2), np.float32),
    "hashes": RNG.integers(0, 4, (400, 2)).astype(np.uint8),
}


def brute(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All distances, in the order of distance, then row number."""
    if points.dtype == np.uint8:
        distances = np.unpackbits(points[None] ^ queries[:, None], axis=2).sum(axis=2)
    else:
        distances = np.linalg.norm(points[None].astype(np.float64) - queries[:, None], axis=2)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, rows, 1), rows


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """faiss takes |q|^2 + |p|^2 - 2 q.p, as some of its versions do from 20 queries on."""
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 7, 150, 400])
@pytest.mark.parametrize("queries", [1, 70])
def test_the_rows_are_those_of_all_distances_sorted(name: str, k: int, queries: int) -> None:
    points = SETS[name]
    distances, rows = Index(points).nearest(points[:queries], k)
    expected, wanted = brute(points, points[:queries], k)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_allclose(distances, expected, rtol=1e-12)


def test_rounding_inside_faiss_changes_no_row(
    by_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = brute(FAR, FAR[:70], 7)[1]
    np.testing.assert_array_equal(Index(FAR).nearest(FAR[:70], 7)[1], expected)
    monkeypatch.setattr(neighbours, "MARGIN", 0)
    monkeypatch.setattr(Index, "_slack", lambda self, squares: squares - np.inf)
    wrong = (Index(FAR).nearest(FAR[:70], 7)[1] != expected).any(axis=1)
    assert wrong.mean() > 0.9  # without the rows beyond k, this is what would be answered


def test_euclidean_distances_by_hand() -> None:
    index = Index(np.array([[0, 0], [3, 4], [0, 0], [6, 8]], np.float32))
    distances, rows = index.nearest(np.array([[0.0, 0.0]]), 4)
    assert distances.tolist() == [[0.0, 0.0, 5.0, 10.0]]
    assert rows.tolist() == [[0, 2, 1, 3]]


def test_hamming_distances_by_hand() -> None:
    #                           10000001    11110000    10000001    11111111
    hashes = np.array([[0b10000001], [0b11110000], [0b10000001], [0b11111111]], np.uint8)
    distances, rows = Index(hashes).nearest(np.array([[0b10000000]], np.uint8), 4)
    assert distances.tolist() == [[1, 1, 3, 7]]
    assert rows.tolist() == [[0, 2, 1, 3]]


def test_no_queries_no_rows() -> None:
    distances, rows = Index(TIED).nearest(np.empty((0, 3), np.float32), 5)
    assert (distances.shape, rows.shape) == ((0, 5), (0, 5))


def test_precision_by_hand() -> None:
    theirs = np.array([["a", "b", "a"], ["b", "b", "a"]])
    own = np.array(["a", "a"])
    assert precision_at(1, theirs, own) == 0.5
    assert precision_at(2, theirs, own) == 0.25
    assert precision_at(3, theirs, own) == 0.5


NAN = np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)
REFUSED: list[tuple[Any, str]] = [
    (
        lambda: Index(TIED).nearest(TIED, 0),
        "k: found 0, allowed are 1 to 400: the index has 400 rows",
    ),
    (
        lambda: Index(TIED).nearest(TIED, 401),
        "k: found 401, allowed are 1 to 400: the index has 400 rows",
    ),
    (
        lambda: Index(TIED).nearest(TIED[:, :2], 1),
        "queries of shape (400, 2), the index needs (queries, 3)",
    ),
    (
        lambda: Index(TIED).nearest(TIED.astype(np.uint8), 1),
        "queries of type uint8, this is an index of codes (floats)",
    ),
    (
        lambda: Index(TIED.astype(np.uint8)).nearest(TIED, 1),
        "queries of type float32, this is an index of hashes (uint8)",
    ),
    (lambda: Index(NAN), "code 1 holds NaN, infinity or numbers too large to compare"),
    (
        lambda: Index(np.zeros((0, 3), np.float32)),
        "an index of shape (0, 3), type float32; needed are codes (rows, units) of floats or hashes "
        "(rows, bytes) of uint8, at least one row",
    ),
    (
        lambda: precision_at(3, TIED[:, :2], TIED[:, 0]),
        "labels of shape (400, 2) for queries (400,) and k = 3; needed are (queries, at least k) and "
        "(queries,)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(DataError) as refused:
        call()
    assert str(refused.value) == message


def test_without_faiss_the_sentence_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(HourglassError) as refused:
        Index(TIED)
    assert str(refused.value) == (
        "nearest neighbours need faiss, which is not installed: "
        "pip install 'hourglass-autoencoder[search]'"
    )
