"""Packs: each member ends as the run it would be alone, whatever becomes of the others."""

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from hourglass import artifact
from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.schema import FeatureSchema
from hourglass.errors import HourglassError, SpecError, TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.training import complete as completing
from hourglass.training import members, packed, stacked
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.complete import Run, complete, complete_packed
from hourglass.training.members import Member
from hourglass.tuning.pack import obstacle, packs

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import CPU, generated, held_out, job, memory_loader, stream_loader

ROWS = generated()
STATS = stats.measure(ROWS[~held_out(len(ROWS))])
LOADERS = {"memory": memory_loader, "stream": stream_loader}
CLOSE = 1e-5
"""Most that a weight of a member may differ from the same run alone."""
APART = 100 * CLOSE
"""Least that members of these tests differ: the comparison would notice whose numbers are whose."""


def quiet(kind: str, payload: Any) -> None:
    """Nobody listens."""


def together(jobs: Sequence[TrainJob], loader: str = "memory") -> list[Member | TrainingError]:
    """The members of one pack."""
    assert packs({str(number): job for number, job in enumerate(jobs)}) == [
        [str(number) for number in range(len(jobs))]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of an operation that is not mapped but looped
        return packed.train(jobs, STATS, LOADERS[loader](jobs[0], ROWS), CPU, [quiet] * len(jobs))


def alone(made: TrainJob, loader: str = "memory") -> Member:
    """The same run by itself."""
    rows = LOADERS[loader](made, ROWS)
    return members.train(made, STATS, rows, SingleProcessGroup(), CPU, quiet).members[0]


def distance(one: AutoencoderModule, other: AutoencoderModule) -> float:
    """The largest difference of any weight or buffer."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return max(float((a - b).abs().max()) for (_, a), (_, b) in pairs)


def assert_member(found: Member | TrainingError, expected: Member) -> None:
    """The weights, every figure of every epoch, and which epoch was the best."""
    assert isinstance(found, Member)
    assert distance(found.module, expected.module) < CLOSE
    assert [set(record) for record in found.history] == [set(r) for r in expected.history]
    for mine, its in zip(found.history, expected.history, strict=True):
        without = {name: figure for name, figure in its.items() if name != "rows_per_s"}
        assert {name: mine[name] for name in without} == pytest.approx(without, rel=1e-4, abs=1e-6)
    assert found.best["epoch"] == expected.best["epoch"]
    assert found.best in found.history
    assert found.module.spec == expected.module.spec


def assert_same(jobs: Sequence[TrainJob], loader: str = "memory") -> list[Member]:
    """Every member is its own run alone, and nobody else's; returns them."""
    ends = together(jobs, loader)
    runs = [alone(made, loader) for made in jobs]
    for index, (found, expected) in enumerate(zip(ends, runs, strict=True)):
        assert_member(found, expected)
        for other in runs[:index] + runs[index + 1 :]:
            assert distance(found.module, other.module) > APART
    return ends


def adam(lr: float, kind: str = "adam", **numbers: float) -> dict[str, Any]:
    return {"optimizer": {"kind": kind, "lr": lr, **numbers}}


def sparse(beta: float, rho: float) -> dict[str, Any]:
    return {"penalties": [{"kind": "sparsity_kl", "rho": rho, "beta": beta}]}


def noisy(kind: str, **numbers: float) -> dict[str, Any]:
    return {"corruption": {"kind": kind, **numbers}}


TIED = {"network": {"widths": [8, 6, 3], "tied": True}}
CASES: dict[str, list[TrainJob]] = {
    "learning rates": [job(**adam(lr)) for lr in (0.001, 0.01, 0.05)],
    "beta": [job(sparse(beta, 0.2)) for beta in (0.01, 0.1, 3.0)],
    "rho": [job(sparse(0.5, rho)) for rho in (-0.5, 0.1, 0.6)],
    "sd": [job(noisy("gaussian", sd=sd)) for sd in (0.01, 0.1, 0.4)],
    "scale": [job(noisy("cauchy", scale=scale)) for scale in (0.01, 0.2)],
    "p": [job(noisy("zeros", p=p)) for p in (0.1, 0.5)],
    "p of salt and pepper": [job(noisy("salt_pepper", p=p)) for p in (0.1, 0.5)],
    "seeds": [job(noisy("ones", p=0.2), seed=seed) for seed in (0, 5, 9)],
    "penalties of the weights": [
        job({"penalties": [{"kind": kind, "weight": w} for kind in ("weights_l2", "weights_l1")]})
        for w in (1e-4, 1e-2)
    ],
    "penalties of the code": [
        job({"penalties": [{"kind": kind, "weight": w} for kind in ("code_l1", "code_l2")]})
        for w in (1e-3, 1e-1)
    ],
    "nested": [
        job({"penalties": [{"kind": "nested", "widths": [1, 2], "weight": w}]}) for w in (0.1, 2.0)
    ],
    "k-sparse": [
        job({"code": {"kind": "top_k", "k": 2}, "network": {"widths": [6]}}, **adam(lr))
        for lr in (0.005, 0.02)
    ],
    "tied, huber": [job({**TIED, "loss": {"kind": "huber"}}, **adam(lr)) for lr in (0.01, 0.03)],
    "cross-entropy": [job({"loss": {"kind": "bce"}}, "unit", **adam(lr)) for lr in (0.01, 0.03)],
    "kinds of optimizers": [
        job(**adam(0.01)),
        job(**adam(0.01, beta1=0.5, beta2=0.9)),
        job(**adam(0.01, "adamw", weight_decay=0.5)),
        job(**adam(0.1, "sgd")),
        job(**adam(0.1, "sgd", momentum=0.9, nesterov=True, weight_decay=0.01)),
        job(**adam(0.01, beta1=0.5, beta2=0.9), seed=8),
    ],
    "schedules": [
        job(schedule=schedule, **adam(0.02))
        for schedule in ({"kind": "constant", "warmup_steps": 9}, {"kind": "cosine"})
    ],
    "clipping": [job(clip_norm=norm, **adam(0.1, "sgd")) for norm in (None, 0.02, 0.1)],
    "numbers of all kinds": [
        job({**noisy("gaussian", sd=0.1 * n), **sparse(0.1 * n, 0.1 * n)}, seed=n, **adam(0.01 * n))
        for n in (1, 2, 3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_member_is_the_run_it_would_be_alone(case: str) -> None:
    """Whose numbers are whose matters: each is far from the runs of all the others."""
    assert_same(CASES[case])


def test_streamed_rows_are_those_of_each_members_seed() -> None:
    assert_same([job(noisy("gaussian", sd=0.1), seed=seed) for seed in (0, 5)], "stream")


def test_without_a_holdout_the_last_weights_count() -> None:
    jobs = [job(**adam(lr)) for lr in (0.01, 0.03)]
    everything = np.zeros(len(ROWS), dtype=bool)
    loader = memory_loader(jobs[0], ROWS, everything)
    for made, found in zip(jobs, packed.train(jobs, STATS, loader, CPU, [quiet] * 2), strict=True):
        expected = members.train(
            made, STATS, memory_loader(made, ROWS, everything), SingleProcessGroup(), CPU, quiet
        )
        assert_member(found, expected.members[0])
        assert "holdout_mse" not in found.best


STOPPING = [
    job(epochs=25, early_stop={"patience": patience, "min_delta": delta}, **adam(lr))
    for lr, patience, delta in ((0.1, 1, 0.0), (0.1, 4, 0.0), (0.02, 2, 1e-3), (0.01, 3, 0.0))
] + [
    job(epochs=3, **adam(0.03, "sgd", momentum=0.9)),
    job(epochs=9, **adam(0.04, "sgd", momentum=0.9)),
]


def test_members_stop_early_and_the_others_go_on() -> None:
    """What the optimizers remember goes with those who stay: without it they end elsewhere."""
    ends, runs = together(STOPPING), [alone(made) for made in STOPPING]
    for found, expected in zip(ends, runs, strict=True):
        assert_member(found, expected)
    epochs = [len(run.history) for run in runs]
    assert epochs[4:] == [3, 9]
    assert len(set(epochs)) >= 4, epochs
    assert epochs[0] < epochs[1] < 25
    with patch.object(stacked, "_stacked", return_value={}):
        forgetful = together(STOPPING)
    assert distance(forgetful[5].module, runs[5].module) > APART


def test_each_hears_its_own_epochs() -> None:
    jobs = [job(epochs=epochs, **adam(0.01)) for epochs in (2, 3)]
    received: list[list[Any]] = [[], []]
    sends = [lambda kind, payload, own=own: own.append((kind, payload)) for own in received]
    ends = packed.train(jobs, STATS, memory_loader(jobs[0], ROWS), CPU, sends)
    for own, end in zip(received, ends, strict=True):
        assert own == [("epoch", record) for record in end.history]
    assert [len(own) for own in received] == [2, 3]


DIVERGING = [job(**adam(lr, "sgd")) for lr in (0.1, 1e25, 0.3)]
SENTENCE = (
    "stopped at step 1 (epoch 1): worker 0: term mse is NaN or infinite. The last checkpoint is kept; "
    "lower the learning rate or check the rows"
)


def test_one_that_diverges_fails_by_itself_in_the_words_of_a_single_run() -> None:
    ends = together(DIVERGING)
    with pytest.raises(TrainingError) as caught:
        alone(DIVERGING[1])
    assert str(ends[1]) == str(caught.value) == SENTENCE
    for index in (0, 2):
        assert_member(ends[index], alone(DIVERGING[index]))
    with patch.object(math, "isfinite", return_value=True):
        unseen = together(DIVERGING)
    assert isinstance(unseen[1], Member)
    assert math.isnan(unseen[1].history[-1]["train_mse"])


def test_one_whose_figures_are_not_finite_after_an_epoch_fails_by_itself() -> None:
    """With one step an epoch the weights explode in the last step, which only the holdout sees."""
    jobs = [job(epochs=2, batch_size=300, **adam(lr, "sgd")) for lr in (0.1, 1e38)]
    ends = together(jobs)
    with pytest.raises(TrainingError) as caught:
        alone(jobs[1])
    assert str(ends[1]) == str(caught.value)
    assert str(ends[1]).startswith("stopped after step 1 (epoch 1): holdout_mse is NaN or infinite")
    assert_member(ends[0], alone(jobs[0]))


def test_one_that_leaves_in_an_epoch_takes_its_state_along() -> None:
    """A gradient taken for infinite at step 12 of 36: alone it is finite, and the run comes to its end."""
    jobs = [job(schedule={"kind": "cosine"}, **adam(lr)) for lr in (0.01, 0.02, 0.03)]
    asked = []

    def wrong(value: float) -> bool:
        asked.append(value)
        return len(asked) != 3 * 12 + 2  # the second of three members at step 12

    with patch.object(packed, "math", SimpleNamespace(isfinite=wrong)):
        ends = together(jobs)
    for found, made in zip(ends, jobs, strict=True):
        assert_member(found, alone(made))


OBSTACLES: dict[str, list[TrainJob]] = {
    "dropout": [job({"network": {"widths": [8, 3], "dropout": 0.2}})] * 2,
    "batch norm": [job({"network": {"widths": [8, 3], "norm": "batch"}})] * 2,
    "noisy code": [job({"code": {"kind": "gaussian_noise", "sd": 1.0}})] * 2,
    "batch-wide code": [job({"code": {"kind": "batch_top_k", "k": 1}})] * 2,
    "trim": [job({"trim": 0.2})] * 2,
    "absolute error": [
        job({"loss": {"kind": "mae"}}, "unit", seed=0, epochs=8, **adam(lr)) for lr in (0.05, 0.02)
    ],
    "layer norm": [
        job({"network": {"widths": [8, 6, 3], "norm": "layer", "tied": True}}, **adam(lr))
        for lr in (0.03, 0.02)
    ],
    "contractive": [job({"penalties": [{"kind": "contractive", "weight": 0.1}]})] * 2,
    "revived": [
        job({"code": {"kind": "top_k", "k": 1}, "penalties": [{"kind": "aux_k"}]}, epochs=12)
    ] * 2,
}  # fmt: skip


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_does_not_pack_would_not_be_the_run_alone(case: str) -> None:
    jobs = OBSTACLES[case]
    assert all(obstacle(made) for made in jobs)
    try:
        ends = packed.train(jobs, STATS, memory_loader(jobs[0], ROWS), CPU, [quiet] * 2)
    except RuntimeError:
        return
    assert distance(ends[0].module, alone(jobs[0]).module) > CLOSE


def runs(jobs: Sequence[TrainJob], folder: Path) -> list[Run]:
    """Runs on the same rows, each in a folder of its own."""
    schema = FeatureSchema(vector="x", columns=(), width=12, dtype="float32")
    printed = {"dataset": {"digest": "data"}}
    return [
        Run(made, schema, STATS, str(folder / str(number)), "data", printed)
        for number, made in enumerate(jobs)
    ]


def test_the_artifacts_are_those_of_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One diverges, and one has a hyperparameter without effect: they fail, the others are saved."""
    received = noisy("gaussian", sd=0.1)
    jobs = [
        job(received, **adam(0.1, "sgd")),
        job(received, **adam(1e25, "sgd")),
        job(noisy("gaussian", sd=0.2)),
        job(received, seed=9),
    ]
    check_sensitivity = completing.check_sensitivity

    def refusing(module: AutoencoderModule, *rest: Any) -> Any:
        if module.spec.corruption == jobs[2].model.corruption:
            raise SpecError("model.corruption.sd: 0.2 does nothing")
        return check_sensitivity(module, *rest)

    monkeypatch.setattr(completing, "check_sensitivity", refusing)
    loader = memory_loader(jobs[0], ROWS)
    ends = complete_packed(runs(jobs, tmp_path / "packed"), loader, CPU, [quiet] * 4)
    outcomes: list[Any] = []
    for run in runs(jobs, tmp_path / "alone"):
        try:
            outcomes.append(
                complete(run, memory_loader(run.job, ROWS), SingleProcessGroup(), CPU, quiet)
            )
        except HourglassError as error:
            outcomes.append(error)
    assert [type(end) for end in ends] == [dict, TrainingError, SpecError, dict]
    assert [str(end) for end in ends[1:3]] == [str(error) for error in outcomes[1:3]]
    for number in (0, 3):
        assert ends[number] == pytest.approx(
            outcomes[number] | {"rows_per_s": ends[number]["rows_per_s"]}, rel=1e-4
        )
        mine, its = (
            artifact.load(str(tmp_path / side / str(number) / "artifact"))
            for side in ("packed", "alone")
        )
        assert distance(mine.module, its.module) < CLOSE
        threshold = its.manifest.calibration.threshold
        assert mine.manifest.calibration.threshold == pytest.approx(threshold, rel=1e-4)
        reported, other = mine.manifest.provenance, its.manifest.provenance
        assert reported["sensitivity"] == other["sensitivity"]
        assert (reported["packed"], "packed" in other) == (4, False)
        assert reported["dataset"] == {"digest": "data"}
        assert len(reported["history"]) == 4
        assert mine.manifest.job == its.manifest.job
    for number in (1, 2):
        assert not (tmp_path / "packed" / str(number)).exists()


@pytest.mark.parametrize("packed", [False, True])
def test_tf32_is_for_a_gpu_while_it_trains(tmp_path: Path, packed: bool) -> None:
    """A CPU's products are left as they are: with the global switch its steps take 15 % longer."""
    seen = set()

    def send(kind: str, payload: Any) -> None:
        backends = torch.backends
        seen.add((backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision))

    (run,) = runs([job(noisy("gaussian", sd=0.1))], tmp_path)
    if packed:
        complete_packed([run], memory_loader(run.job, ROWS), CPU, [send])
    else:
        complete(run, memory_loader(run.job, ROWS), SingleProcessGroup(), CPU, send)
    assert len(seen) == 1
    gpu, cpu = seen.pop()
    assert gpu == "tf32"
    assert cpu != "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_a_write_that_fails_costs_nobody_else_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = artifact.save

    def full(uri: str, **parts: Any) -> str:
        if uri.endswith("1/artifact"):
            raise OSError("no space left on device")
        return save(uri, **parts)

    monkeypatch.setattr(artifact, "save", full)
    jobs = [job(noisy("gaussian", sd=sd)) for sd in (0.1, 0.2, 0.3)]
    ends = complete_packed(runs(jobs, tmp_path), memory_loader(jobs[0], ROWS), CPU, [quiet] * 3)
    assert [type(end) for end in ends] == [dict, OSError, dict]
