"""The loop without Ray: it learns, repeats itself to the bit, and its figures are NumPy's."""

import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hourglass.data import stats
from hourglass.data.loader import Batch
from hourglass.data.reading import _merged
from hourglass.errors import DataError, TrainingError
from hourglass.model.noise import Noise
from hourglass.training import step
from hourglass.training.build import build
from hourglass.training.calibrate import calibrate
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.sensitivity import check_sensitivity
from hourglass.training.step import loss_terms, train_step

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import (
    CPU,
    STILL,
    Planted,
    Run,
    batches,
    fresh,
    generated,
    held_out,
    job,
    memory_loader,
    ready,
    run,
    same_bits,
    stream_loader,
    timeless,
    weights,
)

ROWS = generated()


def test_the_loss_falls() -> None:
    records = run(job(epochs=30), ROWS).records
    assert [record["epoch"] for record in records] == list(range(1, 31))
    assert records[-1]["loss"] < 0.1 * records[0]["loss"]
    assert records[-1]["holdout_fvu"] < 0.1
    assert records[0]["holdout_fvu"] > 0.5


def test_same_seed_same_bits_another_seed_other_bits() -> None:
    noisy = {"corruption": {"kind": "gaussian", "sd": 0.1}}
    first, second = run(job(noisy), ROWS), run(job(noisy), ROWS)
    assert same_bits(weights(first.state), weights(second.state))
    assert timeless(first.records) == timeless(second.records)
    assert not same_bits(weights(first.state), weights(run(job(noisy, seed=6), ROWS).state))


@pytest.mark.parametrize(
    "model",
    [
        {"penalties": [{"kind": "sparsity_kl", "rho": 0.2, "beta": 0.3}]},
        {"corruption": {"kind": "gaussian", "sd": 0.1}},
    ],
)
def test_terms_are_named_and_their_sum_is_the_loss(model: dict) -> None:
    record = run(job(model, epochs=1), ROWS).records[0]
    terms = [value for name, value in record.items() if name.startswith("loss_")]
    assert record["loss"] == pytest.approx(sum(terms), rel=1e-15)
    assert ("loss_sparsity_kl" in record) == ("penalties" in model)
    assert {"loss_mse", "train_mse", "holdout_mse", "holdout_fvu", "code_mean"} <= set(record)


def numpy_pass(w: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Clean rows, code and output of the [8, 3] tanh network in float64."""
    w = {name.removeprefix("network."): value.astype(np.float64) for name, value in w.items()}
    clean = (rows - w["preprocessing.shift_F"]) / w["preprocessing.scale_F"]

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    code = np.tanh(layer("encoder.1", np.tanh(layer("encoder.0", clean))))
    return clean, code, layer("decoder.1", np.tanh(layer("decoder.0", code)))


def test_metrics_are_numpys() -> None:
    """Every step sees the first weights."""
    still = job({"penalties": [{"kind": "sparsity_kl", "rho": 0.2, "beta": 0.3}]}, **STILL)
    made = run(still, ROWS)
    record, held = made.records[0], held_out(len(ROWS))
    clean, code, output = numpy_pass(weights(made.state), ROWS.astype(np.float64))
    errors = np.square(output - clean).mean(axis=1)
    train_mean = clean[~held].mean(axis=0)
    spread = np.square(clean[held] - train_mean).mean(axis=1)
    near = {"rel": 2e-6}
    assert record["train_mse"] == pytest.approx(errors[~held].mean(), **near)
    assert record["loss_mse"] == record["train_mse"]
    assert record["holdout_mse"] == pytest.approx(errors[held].mean(), **near)
    assert record["holdout_fvu"] == pytest.approx(errors[held].sum() / spread.sum(), **near)
    assert record["code_mean"] == pytest.approx(code[~held].mean(), rel=1e-4, abs=1e-6)
    assert record["holdout_code_mean"] == pytest.approx(code[held].mean(), rel=1e-4, abs=1e-6)
    train_code, penalty = code[~held], 0.0
    for batch in batches(still, len(train_code), 0):
        mean, rho = (train_code[batch].mean(axis=0) + 1) / 2, 0.6
        kl = rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))
        penalty += 0.3 * kl.sum() * len(batch)
    assert record["loss_sparsity_kl"] == pytest.approx(penalty / len(train_code), rel=1e-4)


def test_rows_per_second_counts_the_rows_of_this_sitting() -> None:
    """A run resumed in the middle of an epoch divides the rows it has seen itself."""
    spec = job(epochs=1)
    made = ready(spec, ROWS)
    seen = sum(batch.total for batch in made.loader.train(0, 5))
    made.state.step = made.state.epoch_step = 5
    rates = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hourglass.training.loop.time.perf_counter", iter([10.0, 12.0]).__next__)
        made.fit()
        rates = [record["rows_per_s"] for record in made.records]
    assert seen == 270 - 5 * 32
    assert rates == [seen / 2.0]


def test_early_stopping_keeps_the_best_weights() -> None:
    rows = generated(60)
    spec = job(epochs=60, optimizer={"kind": "adam", "lr": 0.3}, early_stop={"patience": 4})
    kept: dict[int, dict[str, np.ndarray]] = {}
    made = ready(spec, rows)
    final = made.fit(lambda state: kept.update({state.epoch: weights(state)}))
    errors = [record["holdout_mse"] for record in made.records]
    best = int(np.argmin(errors))
    assert len(errors) == best + 1 + 4 < 60
    assert final.stopped
    assert final.best_error == errors[best]
    assert same_bits(weights(final), kept[best + 1])
    assert not same_bits(weights(final), kept[len(errors)])


def test_without_a_holdout_the_last_weights_stay() -> None:
    none = np.zeros(len(ROWS), dtype=bool)
    made = run(job(), ROWS, none)
    assert "holdout_mse" not in made.records[-1]
    assert made.state.best_weights == {}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"kind": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"kind": "cosine"}, [(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]),
    ],
)
def test_schedules_are_applied_step_by_step(schedule: dict, rates: list[float]) -> None:
    spec = job(epochs=2, batch_size=68, schedule=schedule, checkpoint_every_steps=1)
    seen: list[float] = []
    made = ready(spec, ROWS)
    made.fit(lambda state: seen.append(state.optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([0.01 * rate for rate in rates])
    assert made.records[-1]["lr"] == seen[-1]


def test_clip_bounds_the_gradient_norm() -> None:
    """One SGD step with rate 1 moves the weights by exactly the (clipped) gradient."""

    def moved(clip: float | None) -> float:
        sgd = {"kind": "sgd", "lr": 1.0}
        spec = job(epochs=1, batch_size=500, optimizer=sgd, clip_norm=clip)
        made = ready(spec, ROWS)
        before = [p.detach().clone() for p in made.state.module.parameters()]
        made.fit()
        after = [p.detach() for p in made.state.module.parameters()]
        pairs = zip(after, before, strict=True)
        return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))

    free = moved(None)
    assert moved(free / 2) == pytest.approx(free / 2, rel=1e-4)
    assert moved(free * 2) == pytest.approx(free, rel=1e-6)


def test_each_optimizer_learns_and_differs() -> None:
    kinds = [
        {"kind": "adam", "lr": 0.01},
        {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"kind": "sgd", "lr": 0.5},
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"kind": "sgd", "lr": 0.5, "weight_decay": 0.01},
    ]
    made = [run(job(optimizer=kind, epochs=3), ROWS) for kind in kinds]
    assert all(one.records[-1]["loss"] < one.records[0]["loss"] for one in made)
    assert len({one.records[-1]["loss"] for one in made}) == len(kinds)


def stopped(made: Run) -> str:
    with pytest.raises(TrainingError) as error:
        made.fit()
    return str(error.value)


ADVICE = "The last checkpoint is kept; lower the learning rate or check the rows"


def test_a_value_too_large_in_the_rows_names_step_worker_and_tensor() -> None:
    spec = job(epochs=2)
    rows = ROWS.astype(np.float64)

    def plant(batch: np.ndarray) -> np.ndarray:
        batch[3, 2] = 1e300
        return batch

    loader = Planted(memory_loader(spec, rows), 11, plant)
    assert stopped(Run(spec, loader, fresh(spec, rows))) == (
        "stopped at step 11 (epoch 2): worker 0: rows in model space is NaN or infinite. " + ADVICE
    )


def test_missing_cells_are_imputed_and_never_blamed() -> None:
    """With `missing: mean` a NaN cell is the column's mean; the term that blew up is named."""
    spec = job(epochs=2)

    def plant(batch: np.ndarray) -> np.ndarray:
        batch[0, 0] = np.nan
        return batch

    made = Run(spec, Planted(memory_loader(spec, ROWS), 3, plant), fresh(spec, ROWS))
    made.fit()
    assert all(math.isfinite(value) for record in made.records for value in record.values())
    made = Run(spec, Planted(memory_loader(spec, ROWS), 3, plant), fresh(spec, ROWS))
    torch.nn.init.constant_(made.state.module.network.decoder[1].weight, 1e30)
    assert "worker 0: term mse is NaN or infinite" in stopped(made)


def test_an_infinite_weight_is_named() -> None:
    made = ready(job(), ROWS)
    with torch.no_grad():
        made.state.module.network.decoder[1].weight[0, 0] = math.inf
    assert stopped(made) == (
        "stopped at step 0 (epoch 1): worker 0: network.decoder.1.weight is NaN or infinite. "
        + ADVICE
    )


def test_a_learning_rate_a_million_times_too_high_stops() -> None:
    linear = {"network": {"widths": [8, 3], "activation": "linear"}}
    spec = job(linear, optimizer={"kind": "sgd", "lr": 0.1 * 1e6})
    text = stopped(ready(spec, ROWS))
    assert re.match(
        r"stopped at step [1-9]\d* \(epoch 1\): worker 0: \S.* is NaN or infinite", text
    )


def test_a_holdout_error_that_overflows_stops_before_it_is_recorded() -> None:
    rows = ROWS.copy()
    rows[0] = 3e38
    made = ready(job(epochs=2), rows)
    assert stopped(made) == (
        "stopped after step 9 (epoch 1): holdout_mse is NaN or infinite. " + ADVICE
    )
    assert made.records == []


def test_columns_that_float32_cannot_hold_are_refused_before_training() -> None:
    rows = ROWS.astype(np.float64)
    rows[1, 4] = 1e300
    message = re.escape("feature 4 has values from ") + ".*which float32 does not hold"
    with pytest.raises(DataError, match=message):
        build(job(), stats.measure(rows))


def test_a_nested_code_has_an_error_at_every_width() -> None:
    """One run, a usable code at each listed width: better than cutting a code that was not nested."""
    rows, widths = generated(600), [1, 2]
    nested = {"network": {"widths": [8, 3]}, "penalties": [{"kind": "nested", "widths": widths}]}
    settings = {"epochs": 20, "optimizer": {"kind": "adam", "lr": 0.01}}
    runs = []
    for model in (nested, {"network": {"widths": [8, 3]}}):
        runs.append(ready(job(model, **settings), rows).fit())
    record = runs[0].history[-1]
    curve = [record["holdout_mse_at_1"], record["holdout_mse_at_2"], record["holdout_mse"]]
    assert curve == sorted(curve, reverse=True)
    whole = torch.from_numpy(rows)
    with torch.no_grad():
        for width in widths:
            cut = []
            for state in runs:
                result = state.module(whole)
                output = state.module.output_at(result.code_BK, width)
                cut.append(float((output - result.clean_BF).square().mean()))
            assert cut[0] < 0.7 * cut[1]


def loss_of(model: dict, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one step over `rows`, and the losses of each of them."""
    state = fresh(job(model), ROWS)
    batch, module = Batch(rows, len(rows)), state.module
    terms, result = loss_terms(module, module, batch, 0, Noise(), SingleProcessGroup())
    (loss,) = terms.values()
    return loss, module.row_losses(result)


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
@pytest.mark.parametrize(("trim", "kept"), [(0.1, 27), (0.25, 23), (0.5, 15), (0.02, 30)])
def test_trim_is_the_mean_without_the_largest_losses(kind: str, trim: float, kept: int) -> None:
    loss, losses_B = loss_of({"loss": {"kind": kind}, "trim": trim}, ROWS[:30])
    expected = np.sort(losses_B.detach().double().numpy())[:kept].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    whole, _ = loss_of({"loss": {"kind": kind}}, ROWS[:30])
    assert whole.item() == pytest.approx(losses_B.mean().item(), rel=1e-6)


def test_a_row_that_trim_leaves_out_teaches_nothing() -> None:
    """However far away it is, the gradient is that of the other rows; without trim it is not."""
    far = ROWS[:20].copy()
    far[7] *= 50.0
    others = np.delete(ROWS[:20], 7, axis=0)
    gradients = {}
    for name, rows, trim in (("far", far, 0.05), ("none", others, 0.0), ("plain", far, 0.0)):
        state = fresh(job({"trim": trim} if trim else None), ROWS)
        batch = Batch(rows, len(rows))
        terms, _ = loss_terms(state.module, state.module, batch, 0, Noise(), SingleProcessGroup())
        terms["mse"].backward()
        gradients[name] = torch.cat([w.grad.flatten() for w in state.module.parameters()])
    assert (gradients["far"] - gradients["none"]).norm() <= 1e-6 * gradients["none"].norm()
    assert (gradients["plain"] - gradients["none"]).norm() > gradients["none"].norm()


def test_trim_hides_no_row_that_is_not_a_number() -> None:
    rows = ROWS.copy()
    rows[11] = 3e38
    state = fresh(job({"trim": 0.5}), ROWS)
    state.module.preprocessing.scale_F.fill_(1e-3)
    state.module.preprocessing.derive()
    rng = Noise().seed(0)
    with pytest.raises(TrainingError, match="rows in model space is NaN or infinite"):
        train_step(state.module, state, Batch(rows, len(rows)), rng, SingleProcessGroup(), None)


def test_what_trim_leaves_out_still_counts_in_the_error() -> None:
    trimmed, plain = (
        run(job({"trim": trim} if trim else None, epochs=1), ROWS).records[0] for trim in (0.3, 0.0)
    )
    assert trimmed["loss_mse"] < trimmed["train_mse"]
    assert plain["loss_mse"] == pytest.approx(plain["train_mse"])


def held_figures(rows: np.ndarray, scaling: str) -> dict[str, float]:
    """The holdout's figures of a still model on these rows."""
    record = run(job(scaling=scaling, **STILL), rows).records[-1]
    return {name: value for name, value in record.items() if name.startswith("holdout")}


@pytest.mark.parametrize("scaling", ["range", "standard", "none"])
@pytest.mark.parametrize("value", [0.0, 0.75, -3e6, 2.0**40])
def test_fvu_of_rows_without_variance_is_undefined(value: float, scaling: str) -> None:
    found = held_figures(np.full((120, 8), value), scaling)
    assert found.keys() == {"holdout_mse", "holdout_code_mean"}
    assert found["holdout_mse"] > 0


@pytest.mark.parametrize("scaling", ["range", "unit", "none", "standard"])
def test_fvu_of_held_out_rows_that_are_all_alike_is_undefined(scaling: str) -> None:
    """Only a training row differs: the held-out rows lie apart from the mean, not from each other."""
    rows = np.full((300, 8), 3.0)
    trained = np.flatnonzero(~held_out(len(rows)))
    rows[trained[0], 2] = 4.0
    assert "holdout_fvu" not in held_figures(rows, scaling)
    rows[np.flatnonzero(held_out(len(rows)))[1], 3] = 4.0  # the control: now one of them differs
    assert held_figures(rows, scaling)["holdout_fvu"] > 0


def test_fvu_tells_variance_from_rounding() -> None:
    """One unit in the last place is rounding; a 100,000th of the value is not."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (120, 8))
    jitter = (0.75 + signs * 2.0**-24).astype(np.float32)
    assert np.ptp(jitter) > 0
    assert "holdout_fvu" not in held_figures(jitter, "none")
    found = held_figures((0.75 + signs * 1e-5).astype(np.float32), "none")
    assert found["holdout_fvu"] == pytest.approx(found["holdout_mse"] / 1e-10, rel=0.1)


def test_fvu_without_variance_would_be_a_number_without_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "ULPS", 0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (120, 8))
    jitter = (0.75 + signs * 2.0**-24).astype(np.float32)
    assert held_figures(jitter, "none")["holdout_fvu"] > 1e10


def test_early_stop_goes_by_the_error_where_fvu_is_undefined() -> None:
    made = run(
        job(epochs=30, early_stop={"patience": 2, "min_delta": 1e9}), np.full((120, 8), 0.75)
    )
    assert len(made.records) == 3
    assert not any("holdout_fvu" in record for record in made.records)


def locked(rows: np.ndarray) -> np.ndarray:
    """The same rows in memory that cannot be written to, as Ray's object store is."""
    return np.frombuffer(rows.tobytes(), rows.dtype).reshape(rows.shape)


@pytest.mark.parametrize("loader", ["memory", "stream"])
def test_rows_that_cannot_be_written_to_are_taken_without_a_warning(loader: str) -> None:
    made = job({"penalties": [{"kind": "sparsity_kl", "rho": 0.2, "beta": 0.3}]}, epochs=2)
    rows, held = locked(ROWS), held_out(len(ROWS))
    table = [{n: v.tobytes() for n, v in stats.measure(rows[~held]).arrays().items()}]
    counts = {"shard": 0, "group": 0, "train": 270, "holdout": 30, "dropped": 0, "imputed": 0}
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else PyTorch warns once in a process
    try:
        with warnings.catch_warnings(action="error"):
            with pytest.raises(UserWarning, match="not writable"):  # the control
                torch.from_numpy(rows)
            statistics = _merged([table[0] | counts])
            parts: Any = (
                stream_loader(made, rows) if loader == "stream" else memory_loader(made, rows)
            )
            if loader == "stream":
                read = parts._read
                parts._read = lambda slices: map(locked, read(slices))
            check_sensitivity(build(made, statistics.stats), parts, CPU)
            state = Run(made, parts, fresh(made, rows)).fit()
            calibrate([state.module], "mean", parts, SingleProcessGroup(), 0.99, CPU)
    finally:
        torch.set_warn_always(before)
