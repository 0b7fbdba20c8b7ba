"""Neighbours and classes of codes.

Exact nearest neighbours among codes (Euclidean distance) or hashes (differing bits), with faiss; and how
much of a label the codes hold: simple classifiers of codes, beside the majority baseline.
Shapes: N rows in the index, B queries or rows, K code units, W numbers or bytes of each, k neighbours.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hourglass.errors import DataError, HourglassError

Array = NDArray[Any]
BLOCK = 64
"""Queries searched at once: bounds memory when many rows are equally far."""
MARGIN = 16
"""Rows fetched beyond k, so that most ties at the end are seen at the first search."""
LARGEST = 1e37
"""Of a squared length: above it a squared distance does not fit float32."""


class Index:
    """Rows (N, W) to search: codes are floating point, hashes are packed bits (uint8).

    faiss finds the candidates; their distances are computed again in full precision, so that rows
    come by distance, then by row number, whatever the path, the threads or the other queries.
    Raises: DataError for another shape or type, HourglassError without faiss.
    """

    def __init__(self, points: Array) -> None:
        points = np.asarray(points)
        self._hashes = points.dtype == np.uint8
        if points.ndim != 2 or not points.size or not (self._hashes or points.dtype.kind == "f"):
            raise DataError(
                f"an index of shape {points.shape}, type {points.dtype}; needed are codes "
                "(rows, units) of floats or hashes (rows, bytes) of uint8, at least one row"
            )
        self._width = points.shape[1]
        self._points, squares = self._prepared(points)
        self._longest = float(squares.max())
        faiss = _faiss()
        self._flat = (
            faiss.IndexBinaryFlat(8 * self._width)
            if self._hashes
            else faiss.IndexFlatL2(self._width)
        )
        self._flat.add(self._points)

    def __len__(self) -> int:
        """N, the rows in the index."""
        return len(self._points)

    def nearest(self, queries: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
        """Distances (B, k) and row numbers (B, k) of the k nearest rows of each query (B, W).

        Distances are Euclidean (float64), or counts of differing bits (int64). Raises: DataError.
        """
        if not 1 <= k <= len(self):
            raise DataError(
                f"k: found {k}, allowed are 1 to {len(self)}: the index has {len(self)} rows"
            )
        queries, squares = self._prepared(self._fitting(np.asarray(queries)))
        distances = np.empty((len(queries), k), np.int64 if self._hashes else np.float64)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), BLOCK):
            block = slice(start, start + BLOCK)
            candidates = self._candidates(queries[block], self._slack(squares[block]), k)
            for at, (query, among) in enumerate(zip(queries[block], candidates, strict=True)):
                exact = self._distances(query, among)
                first = np.lexsort((among, exact))[:k]
                distances[start + at], rows[start + at] = exact[first], among[first]
        return distances, rows

    def _fitting(self, queries: Array) -> Array:
        kind = "hashes (uint8)" if self._hashes else "codes (floats)"
        if (queries.dtype == np.uint8) != self._hashes or queries.dtype.kind not in "uf":
            raise DataError(f"queries of type {queries.dtype}, this is an index of {kind}")
        if queries.ndim != 2 or queries.shape[1] != self._width:
            raise DataError(
                f"queries of shape {queries.shape}, the index needs (queries, {self._width})"
            )
        return queries

    def _prepared(self, points: Array) -> tuple[Array, NDArray[np.float64]]:
        """Points as faiss takes them, and their squared lengths; 0 for hashes. Raises DataError."""
        if self._hashes:
            return np.ascontiguousarray(points), np.zeros(len(points))
        codes = np.ascontiguousarray(points, dtype=np.float32)
        squares = np.square(codes, dtype=np.float64).sum(axis=1)
        short = squares < LARGEST  # false for NaN as well
        if not short.all():
            raise DataError(
                f"code {np.argmin(short)} holds NaN, infinity or numbers too large to compare"
            )
        return codes, squares

    def _slack(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far two of faiss's squared distances may be off together: it adds up in float32.

        Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1, for the
        inner products in |q|^2 + |p|^2 - 2 q.p. Counts of bits are exact.
        """
        if self._hashes:
            return squares
        rounding = float(np.finfo(np.float32).eps)
        slack: NDArray[np.float64] = 2 * (self._width + 4) * rounding * (squares + self._longest)
        return slack

    def _candidates(self, queries: Array, slack: NDArray[np.float64], k: int) -> Array:
        """Rows (B, m) that hold, for each query, every row as near as its k-th nearest."""
        most = min(len(self), k + MARGIN)
        while True:
            found, rows = self._flat.search(queries, most)
            all_in = found[:, -1] > found[:, k - 1] + slack
            if most == len(self) or bool(all_in.all()):
                return np.asarray(rows)
            most = min(len(self), 2 * most)

    def _distances(self, query: Array, rows: NDArray[np.int64]) -> Array:
        points = self._points[rows]
        if self._hashes:
            return np.asarray(np.bitwise_count(points ^ query).sum(axis=1, dtype=np.int64))
        return np.asarray(np.sqrt(np.square(points.astype(np.float64) - query).sum(axis=1)))


def precision_at(k: int, neighbour_labels: Array, query_labels: Array) -> float:
    """Share of the first k neighbours (B, at least k) whose label is the query's (B,), over all.

    Raises: DataError for shapes that do not fit. Source: Manning, Raghavan and Schuetze 2008,
    "Introduction to Information Retrieval", section 8.4.
    """
    theirs, own = np.asarray(neighbour_labels), np.asarray(query_labels)
    if theirs.ndim != 2 or own.shape != (len(theirs),) or not 1 <= k <= theirs.shape[1]:
        raise DataError(
            f"labels of shape {theirs.shape} for queries {own.shape} and k = {k}; needed are "
            "(queries, at least k) and (queries,)"
        )
    return float((theirs[:, :k] == own[:, None]).mean())


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise HourglassError(
            "nearest neighbours need faiss, which is not installed: "
            "pip install 'hourglass-autoencoder[search]'"
        ) from None
    return faiss


NEIGHBOURS = 7
STEPS = 1000
"""Most steps of the logistic regression; its solver draws no random numbers."""


@dataclass(frozen=True)
class Accuracies:
    """Accuracies on the test rows, seconds to fit and answer, and the majority_baseline beneath them.

    `majority_baseline` is the accuracy of always answering the label most frequent in training.
    """

    knn_accuracy: float
    knn_seconds: float
    logistic_accuracy: float
    logistic_seconds: float
    logistic_converged: bool
    majority_baseline: float


def classify(
    train_codes: Array,
    train_labels: Array,
    test_codes: Array,
    test_labels: Array,
    neighbours: int = NEIGHBOURS,
) -> Accuracies:
    """Classify test codes (B, K) by their nearest neighbours and by logistic regression.

    Codes are standardised with the training rows' statistics. Raises: DataError for shapes that do not
    fit, a single label, or more neighbours than training rows.
    """
    train, test = np.asarray(train_codes), np.asarray(test_codes)
    labels = np.concatenate([train_labels, test_labels])
    _check(train, test, len(train_labels), len(test_labels), neighbours)
    _, numbers = np.unique(labels, return_inverse=True)
    known, wanted = numbers[: len(train)], numbers[len(train) :]
    if len(np.unique(known)) < 2:
        raise DataError(f"every training row has label {labels[0]!s}; a probe needs two or more")
    near = KNeighborsClassifier(neighbours)
    logistic = LogisticRegression(max_iter=STEPS)
    knn_accuracy, knn_seconds = _accuracy(near, train, known, test, wanted)
    logistic_accuracy, logistic_seconds = _accuracy(logistic, train, known, test, wanted)
    return Accuracies(
        knn_accuracy=knn_accuracy,
        knn_seconds=knn_seconds,
        logistic_accuracy=logistic_accuracy,
        logistic_seconds=logistic_seconds,
        logistic_converged=int(logistic.n_iter_.max()) < STEPS,
        majority_baseline=float((wanted == np.bincount(known).argmax()).mean()),
    )


def _check(train: Array, test: Array, train_labels: int, test_labels: int, neighbours: int) -> None:
    for codes, labels in ((train, train_labels), (test, test_labels)):
        if codes.ndim != 2 or not len(codes) or len(codes) != labels:
            raise DataError(f"codes of shape {codes.shape} with {labels} labels; one for each row")
    if train.shape[1] != test.shape[1]:
        raise DataError(f"training codes have {train.shape[1]} units, test codes {test.shape[1]}")
    if not 1 <= neighbours <= len(train):
        raise DataError(
            f"neighbours: found {neighbours}, allowed are 1 to {len(train)}, the training rows"
        )


def _accuracy(
    model: Any, train: Array, known: Array, test: Array, wanted: Array
) -> tuple[float, float]:
    """Share of test rows answered rightly, and the seconds it took."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `logistic_converged` tells
        answers = make_pipeline(StandardScaler(), model).fit(train, known).predict(test)
    return float((answers == wanted).mean()), time.perf_counter() - began
