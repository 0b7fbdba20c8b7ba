"""The probe: 1 on codes that tell the label, the majority_baseline on codes that do not."""

from typing import Any

import numpy as np
import pytest

from hourglass.errors import DataError
from hourglass.inference import neighbours as classifying
from hourglass.inference.neighbours import classify

RNG = np.random.default_rng(5)
LABELS = np.repeat(["cat", "dog", "eel"], [60, 30, 10])
CENTRES = np.array([[0, 0, 0, 7], [9, 0, 0, 7], [0, 9, 0, 7]])  # the last unit is dead


def codes(labels: np.ndarray, spread: float = 0.1) -> np.ndarray:
    numbers = np.unique(LABELS, return_inverse=True)[1]
    made = CENTRES[numbers] + spread * RNG.normal(size=(len(labels), 4)) * [1, 1, 1, 0]
    return made.astype(np.float32)


def test_separable_codes_are_told_apart_without_a_mistake() -> None:
    found = classify(codes(LABELS), LABELS, codes(LABELS), LABELS)
    assert (found.knn_accuracy, found.logistic_accuracy, found.majority_baseline) == (1.0, 1.0, 0.6)
    assert found.logistic_converged
    assert 0 < found.knn_seconds < 60
    assert 0 < found.logistic_seconds < 60


def test_labels_that_codes_do_not_tell_leave_the_floor() -> None:
    train, test = RNG.normal(size=(2, 2000, 4)).astype(np.float32)
    rare = (RNG.random((2, 2000)) < 0.1).astype(int)
    found = classify(train, rare[0], test, rare[1], neighbours=51)
    assert found.majority_baseline == 1 - rare[1].mean()
    assert (found.logistic_accuracy, found.knn_accuracy) == (
        found.majority_baseline,
        found.majority_baseline,
    )
    even = RNG.permutation(np.arange(2000) % 2)
    found = classify(train, even, test, RNG.permutation(even))
    assert found.majority_baseline == 0.5
    assert found.knn_accuracy == pytest.approx(0.5, abs=0.04)  # 3.6 standard errors
    assert found.logistic_accuracy == pytest.approx(0.5, abs=0.04)


def test_units_count_alike_whatever_their_scale() -> None:
    """A unit a million times larger, without a word on the label, drowns it unless standardised."""
    labels = np.arange(200) % 2
    made = np.stack([labels + 0.1 * RNG.normal(size=200), 1e6 * RNG.normal(size=200)], axis=1)
    assert classify(made[:100], labels[:100], made[100:], labels[100:]).knn_accuracy == 1.0


def test_a_label_of_the_test_rows_alone_is_always_missed() -> None:
    found = classify(codes(LABELS), LABELS, codes(LABELS), np.full(100, "fox"))
    assert (found.knn_accuracy, found.logistic_accuracy, found.majority_baseline) == (0.0, 0.0, 0.0)


def test_a_solver_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifying, "STEPS", 1)
    assert not classify(codes(LABELS), LABELS, codes(LABELS), LABELS).logistic_converged


C = codes(LABELS)
REFUSED: list[tuple[tuple[Any, ...], str]] = [
    ((C, LABELS[:9], C, LABELS), "codes of shape (100, 4) with 9 labels; one for each row"),
    ((C[:, :3], LABELS, C, LABELS), "training codes have 3 units, test codes 4"),
    (
        (C[:60], LABELS[:60], C, LABELS),
        "every training row has label cat; a probe needs two or more",
    ),
    (
        (C, LABELS, C, LABELS, 101),
        "neighbours: found 101, allowed are 1 to 100, the training rows",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refusals(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError) as refused:
        classify(*arguments)
    assert str(refused.value) == message
