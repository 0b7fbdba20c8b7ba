"""NUM-01: stopped anywhere and restored from its checkpoint, a run ends with the same bits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hourglass.config.train import TrainJob
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.state import State

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import (
    Run,
    Stop,
    fresh,
    generated,
    job,
    memory_loader,
    same_bits,
    stream_loader,
    timeless,
)

ROWS = generated()
LOADERS = {"memory": memory_loader, "stream": stream_loader}
NOISY = {
    "corruption": {"kind": "gaussian", "sd": 0.1},
    "code": {"kind": "plain"},
    "penalties": [{"kind": "sparsity_kl", "rho": 0.2, "beta": 0.1}],
    "adversary": {"prior": {"kind": "uniform"}},
}
STEPS = 4 * 9  # 4 epochs of 270 rows in steps of 32
RANDOM_STEPS = [int(s) for s in np.random.default_rng(20).choice(STEPS - 1, 5, replace=False) + 1]


def spec(optimizer: dict | None = None) -> TrainJob:
    schedule = {"kind": "cosine", "warmup_steps": 3}
    chosen = optimizer or {"kind": "adam", "lr": 0.01}
    return job(NOISY, optimizer=chosen, schedule=schedule, checkpoint_every_steps=1)


def begin(made: TrainJob, loader: str) -> Run:
    return Run(made, LOADERS[loader](made, ROWS), fresh(made, ROWS))


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(str(folder), "run", "data", 1)


def stop_at(step: int, made: TrainJob, loader: str, folder: Path) -> None:
    """Run until `step` is committed, and no further."""

    def commit(state: State) -> None:
        checkpoints(folder).save(state)
        if state.step == step:
            raise Stop

    with pytest.raises(Stop):
        begin(made, loader).fit(commit)


def resume(made: TrainJob, loader: str, folder: Path) -> Run:
    """A new state from the committed checkpoint, run to its end."""
    run = begin(made, loader)
    saved = checkpoints(folder)
    name = saved.newest(pytest.fail)
    assert name is not None
    run.state.restore(*saved.load(name))
    run.fit()
    return run


def assert_same_run(one: State, other: State) -> None:
    """Weights, best weights, discriminator, optimizers and every recorded figure, to the bit."""
    assert same_bits(one.tensors(), other.tensors())
    assert timeless(one.history) == timeless(other.history)
    assert (one.step, one.epoch, one.best_epoch, one.best_error) == (
        other.step,
        other.epoch,
        other.best_epoch,
        other.best_error,
    )


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, State]:
    return {loader: begin(spec(), loader).fit() for loader in LOADERS}


def test_the_random_steps_include_the_middle_of_epochs() -> None:
    assert len({step for step in RANDOM_STEPS if step % 9}) >= 3


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("step", [*RANDOM_STEPS, 9, STEPS])
def test_stop_and_resume_is_the_uninterrupted_run(
    step: int, loader: str, tmp_path: Path, undisturbed: dict[str, State]
) -> None:
    stop_at(step, spec(), loader, tmp_path)
    assert_same_run(resume(spec(), loader, tmp_path).state, undisturbed[loader])


@pytest.mark.parametrize("code", ["top_k", "batch_top_k"])
def test_a_k_sparse_run_remembers_which_units_are_idle(tmp_path: Path, code: str) -> None:
    """Dropout and the revival of dead units go on as if nothing had happened."""
    model = {
        "network": {"widths": [8, 6], "code_activation": "relu", "dropout": 0.1},
        "code": {"kind": code, "k": 1},
        "penalties": [{"kind": "aux_k", "dead_after_steps": 3}],
    }
    made = job(model, checkpoint_every_steps=1)
    whole = begin(made, "memory").fit()
    stop_at(11, made, "memory", tmp_path)
    assert_same_run(resume(made, "memory", tmp_path).state, whole)
    assert whole.idle_K is not None
    assert sum(record["loss_aux_k"] > 0 for record in whole.history) > 0
    assert all(0.0 <= record["dead_units"] < 1.0 for record in whole.history)


def test_two_stops_in_one_epoch(tmp_path: Path, undisturbed: dict[str, State]) -> None:
    stop_at(11, spec(), "memory", tmp_path)
    run, saved = begin(spec(), "memory"), checkpoints(tmp_path)
    run.state.restore(*saved.load(str(saved.newest(pytest.fail))))

    def commit(state: State) -> None:
        saved.save(state)
        if state.step == 14:
            raise Stop

    with pytest.raises(Stop):
        run.fit(commit)
    assert_same_run(resume(spec(), "memory", tmp_path).state, undisturbed["memory"])


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "lr": 0.1},
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ],
)
def test_every_optimizer_resumes(optimizer: dict, tmp_path: Path) -> None:
    whole = begin(spec(optimizer), "memory").fit()
    stop_at(13, spec(optimizer), "memory", tmp_path)
    assert_same_run(resume(spec(optimizer), "memory", tmp_path).state, whole)


@pytest.mark.parametrize("lost", ["optimizer", "discriminator_optimizer", "sums", "step"])
def test_a_state_that_forgets_something_is_not_the_same_run(
    lost: str, tmp_path: Path, undisturbed: dict[str, State]
) -> None:
    """The negative control: the comparison sees a lost moment, partial sum or step count."""
    stop_at(13, spec(), "memory", tmp_path)
    run, saved = begin(spec(), "memory"), checkpoints(tmp_path)
    tensors, position = saved.load(str(saved.newest(pytest.fail)))
    if lost.endswith("optimizer"):
        assert {f"{lost}.0.exp_avg", "discriminator.0.weight"} <= tensors.keys()
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{lost}.")}
    elif lost == "sums":
        position["sums"] = [{}]
    else:
        position["step"] -= 1
    run.state.restore(tensors, position)
    run.fit()
    with pytest.raises(AssertionError):
        assert_same_run(run.state, undisturbed["memory"])


def test_early_stopping_survives_a_stop(tmp_path: Path) -> None:
    stopping = job(epochs=40, optimizer={"kind": "adam", "lr": 0.3}, early_stop={"patience": 3})
    whole = begin(stopping, "memory").fit()
    assert whole.stopped
    stop_at(whole.step - 9, stopping, "memory", tmp_path)
    assert_same_run(resume(stopping, "memory", tmp_path).state, whole)


def test_resume_in_a_new_process(tmp_path: Path, undisturbed: dict[str, State]) -> None:
    """The stopped run, the resumed one and the undisturbed one live in three processes."""
    stop_at(RANDOM_STEPS[0], spec(), "memory", tmp_path)
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_resume as t\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "state = t.resume(t.spec(), 'memory', folder).state\n"
        "t.Checkpoints(str(folder / 'end'), 'run', 'data', 1).save(state)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    saved = Checkpoints(str(tmp_path / "end"), "run", "data", 1)
    there = fresh(spec(), ROWS)
    there.restore(*saved.load(str(saved.newest(pytest.fail))))
    assert_same_run(there, undisturbed["memory"])
