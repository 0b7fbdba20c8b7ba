"""Challenger and champion on the same rows, in one model space; the alias moves to the better one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hourglass.errors import DataError
from hourglass.inference.predictor import Predictor
from hourglass.model.preprocessing import ColumnStats, Preprocessing, Scaling, Standard
from hourglass.settings import Settings
from hourglass.tracking import backend, mlflow, registry
from hourglass.tracking import mlflow as store
from hourglass.tuning import champion
from hourglass.tuning.champion import CHUNK, Comparison, compare, promote_if_better

Save = Callable[..., str]


def scaled(model: Predictor, rows: np.ndarray) -> np.ndarray:
    """The rows in the model's space, by the formula of its scaling."""
    scale = model.module.preprocessing
    kept = scale.kept_F.numpy()
    return (rows[:, kept].astype(np.float64) - scale.shift_F.numpy()) / scale.scale_F.numpy()


def by_hand(space: Predictor, model: Predictor, rows: np.ndarray) -> float:
    return float(np.square(scaled(space, model.reconstruct(rows)) - scaled(space, rows)).mean())


@pytest.fixture
def predictor(tmp_path: Path, save_artifact: Save) -> Callable[..., Predictor]:
    """`predictor(name, ...)`: a small untrained model, loaded."""

    def make(name: str, **given: Any) -> Predictor:
        save_artifact(tmp_path / name, **given)
        return Predictor.load(str(tmp_path / name))

    return make


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on models scale by the standard deviation, which is another model space."""
    fit = Preprocessing.fit

    def use() -> None:
        def fitted(_: Scaling, stats: ColumnStats, drop: bool) -> Preprocessing:
            return fit(Standard(), stats, drop)

        monkeypatch.setattr(Preprocessing, "fit", fitted)

    return use


def test_both_are_compared_in_the_challengers_space(
    predictor: Callable[..., Predictor], standard: Callable[[], None], rows: np.ndarray
) -> None:
    ours = predictor("ours", seed=1)
    standard()
    theirs = predictor("theirs", seed=2)
    comparison = compare(ours, theirs, rows)
    assert comparison.challenger == pytest.approx(by_hand(ours, ours, rows), rel=1e-5)
    assert comparison.champion == pytest.approx(by_hand(ours, theirs, rows), rel=1e-5)
    assert comparison.challenger == pytest.approx(ours.anomaly(rows).mean(), rel=1e-5)
    assert comparison.rows == 300
    # Each by its own score, in units of its own, the order is the scalings', not the models'.
    assert theirs.anomaly(rows).mean() > 3 * comparison.champion
    other_way = compare(theirs, ours, rows)
    assert other_way.champion == pytest.approx(by_hand(theirs, ours, rows), rel=1e-5)


def test_a_model_against_itself_is_not_better(
    predictor: Callable[..., Predictor], rows: np.ndarray
) -> None:
    ours = predictor("ours")
    comparison = compare(ours, ours, rows)
    assert comparison.challenger == comparison.champion
    assert not comparison.better
    assert comparison.message == (
        f"the challenger's error on 300 held-out rows is {comparison.challenger:.4g}, 1 times the "
        f"champion's {comparison.champion:.4g}: the champion stays"
    )


def test_the_message_gives_both_errors() -> None:
    comparison = Comparison(challenger=0.01, champion=0.04, rows=1234)
    assert comparison.better
    assert comparison.message == (
        "the challenger's error on 1,234 held-out rows is 0.01, 0.25 times the champion's 0.04: "
        "the challenger is better"
    )
    assert not Comparison(float("inf"), float("inf"), 5).better
    assert Comparison(0.1, float("inf"), 5).better
    assert "is 0.1, against the champion's 0: the champion stays" in Comparison(0.1, 0, 5).message


def test_parts_of_many_rows_add_up(predictor: Callable[..., Predictor], rows: np.ndarray) -> None:
    ours, theirs = predictor("ours", seed=1), predictor("theirs", seed=2)
    many = np.resize(rows, (CHUNK + 100, rows.shape[1]))
    comparison = compare(ours, theirs, many)
    assert comparison.champion == pytest.approx(by_hand(ours, theirs, many), rel=1e-5)


def test_missing_cells_are_left_out(predictor: Callable[..., Predictor], rows: np.ndarray) -> None:
    features = {"missing": "mean"}
    ours = predictor("ours", seed=1, features=features)
    theirs = predictor("theirs", seed=2, features=features)
    holes = rows[:50].copy()
    holes[::3, 2] = np.nan
    known = np.isfinite(holes)
    comparison = compare(ours, theirs, holes)
    for model_, found in ((ours, comparison.challenger), (theirs, comparison.champion)):
        error = np.square(scaled(ours, model_.reconstruct(holes)) - scaled(ours, holes))
        assert found == pytest.approx(error[known].mean(), rel=1e-5)
    with pytest.raises(DataError, match="every cell of the held-out rows is missing"):
        compare(ours, theirs, np.full_like(holes, np.nan))


def test_columns_that_the_challenger_drops_do_not_count(
    predictor: Callable[..., Predictor], rows: np.ndarray
) -> None:
    ours = predictor("ours", drop_constant=True)  # column 5 is constant
    theirs = predictor("theirs", seed=2)
    comparison = compare(ours, theirs, rows)
    assert comparison.champion == pytest.approx(by_hand(ours, theirs, rows), rel=1e-5)


@pytest.mark.parametrize("missing", ["error", "mean"])
def test_a_model_whose_answers_are_not_finite_loses(
    predictor: Callable[..., Predictor],
    rows: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    """An imputing challenger would take the champion's NaN for missing cells."""
    ours = predictor("ours", features={"missing": missing})
    theirs = predictor("theirs", seed=2)
    monkeypatch.setattr(theirs, "reconstruct", lambda chunk: np.full_like(chunk, np.nan))
    comparison = compare(ours, theirs, rows)
    assert (comparison.champion, comparison.better) == (float("inf"), True)
    assert not compare(theirs, ours, rows).better


def test_other_features_cannot_be_compared(
    predictor: Callable[..., Predictor], rows: np.ndarray
) -> None:
    ours = predictor("ours")
    narrow = predictor("narrow", of=np.ascontiguousarray(rows[:, :2]))
    with pytest.raises(DataError) as caught:
        compare(ours, narrow, rows)
    assert str(caught.value) == (
        "the champion takes 2 features (image[0], image[1]), the challenger 12 features (image[0], "
        "image[1], image[2], ...); no rows fit both, so they cannot be compared: promote a "
        "version yourself, or register the challenger under another name"
    )
    names = tuple(f"x{i}" for i in range(12))
    columns = predictor("columns", features={"vector": None, "columns": names})
    with pytest.raises(DataError, match=r"the champion takes 12 features \(x0, x1, x2, ...\)"):
        compare(ours, columns, rows)
    with pytest.raises(DataError, match="no held-out rows to compare the models on"):
        compare(ours, ours, rows[:0])


# -- the alias --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings.model_validate({"home": home, "MLFLOW_TRACKING_URI": None})


def register(settings: Settings, name: str, folder: Path) -> str:
    client = store.client(settings)
    experiment = client.get_experiment_by_name(name)
    where = (settings.root / "artifacts").as_uri()
    known = experiment.experiment_id if experiment else client.create_experiment(name, where)
    run_id = client.create_run(known).info.run_id
    logged = mlflow.log(client, run_id, str(folder))
    return backend.register(registry.open_tracker(settings), name, run_id, logged).version


def test_the_alias_moves_to_the_better_one_only(
    settings: Settings, predictor: Callable[..., Predictor], tmp_path: Path, rows: np.ndarray
) -> None:
    errors = {
        seed: by_hand(m, m, rows) for seed in (1, 2, 3) if (m := predictor(str(seed), seed=seed))
    }
    best, middle, worst = sorted(errors, key=lambda seed: errors[seed])

    version = register(settings, "digits", tmp_path / str(middle))
    assert registry.champion(settings, "digits") is None
    first = promote_if_better(settings, "digits", version, rows)
    assert first.message == "digits version 1 is champion: there was none before"
    assert first.promoted is not None

    again = promote_if_better(settings, "digits", version, rows)
    assert (again.promoted, again.message) == (None, "digits version 1 is already champion")

    version = register(settings, "digits", tmp_path / str(worst))
    stays = promote_if_better(settings, "digits", version, rows)
    assert stays.promoted is None
    assert stays.comparison is not None
    assert stays.message == f"digits version 1 stays champion: {stays.comparison.message}"
    assert "the champion stays" in stays.message
    assert [v.aliases for v in registry.versions(settings, "digits")] == [
        ("challenger",),
        ("champion",),
    ]

    version = register(settings, "digits", tmp_path / str(best))
    moved = promote_if_better(settings, "digits", version, rows)
    assert moved.promoted is not None
    assert (moved.promoted.version.version, moved.promoted.before) == ("3", "1")
    assert moved.message.startswith("digits version 3 is champion: the challenger's error on 300")
    found = registry.champion(settings, "digits")
    assert found is not None
    assert found.version == "3"

    predictor("narrow", of=np.ascontiguousarray(rows[:, :2]))
    version = register(settings, "digits", tmp_path / "narrow")
    other = promote_if_better(settings, "digits", version, rows)
    assert (other.promoted, other.comparison) == (None, None)
    assert other.message.startswith(
        "digits version 3 stays champion: the champion takes 12 features"
    )


def test_a_comparison_that_is_switched_off_promotes_anything(
    settings: Settings,
    predictor: Callable[..., Predictor],
    tmp_path: Path,
    rows: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without the comparison a worse model becomes champion."""
    errors = {
        seed: by_hand(m, m, rows) for seed in (1, 2) if (m := predictor(str(seed), seed=seed))
    }
    good, bad = sorted(errors, key=lambda seed: errors[seed])
    promote_if_better(settings, "off", register(settings, "off", tmp_path / str(good)), rows)
    version = register(settings, "off", tmp_path / str(bad))
    assert promote_if_better(settings, "off", version, rows).promoted is None
    monkeypatch.setattr(champion, "compare", lambda *_: Comparison(0.0, 1.0, 1))
    assert promote_if_better(settings, "off", version, rows).promoted is not None
