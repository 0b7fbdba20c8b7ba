"""How much of a label the codes hold: simple classifiers of codes, beside the majority_baseline.

Shapes: B rows, K code units.
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

from hourglass.errors import DataError

Array = NDArray[Any]
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
