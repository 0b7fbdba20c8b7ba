"""Ensembles: each member is the run it would be alone, a killed one resumes, and their scores agree."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.loader import Loader
from hourglass.errors import DataError, SpecError, TrainingError
from hourglass.training import calibrate as calibration
from hourglass.training import loop, members, phases
from hourglass.training.calibrate import calibrate, rank_agreement
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.members import Member, Trained
from hourglass.training.state import State

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import (
    CPU,
    Stop,
    generated,
    held_out,
    job,
    memory_loader,
    run,
    same_bits,
    stream_loader,
    timeless,
)

ROWS = generated()
STATS = stats.measure(ROWS[~held_out(len(ROWS))])
LOADERS = {"memory": memory_loader, "stream": stream_loader}
NOISY = {
    "corruption": {"kind": "gaussian", "sd": 0.1},
    "penalties": [{"kind": "sparsity_kl", "rho": 0.2, "beta": 0.1}],
}
GREEDY = {"phases": [{"kind": "greedy", "epochs": 1}]}


def trained(
    made: TrainJob, loader: Loader | None = None, saved: Any = None, printed: Any = None
) -> Trained:
    """The members of `made`; `printed` collects what they send."""
    lines = [] if printed is None else printed
    send = lambda kind, payload: lines.append((kind, payload))  # noqa: E731
    return members.train(
        made, STATS, loader or memory_loader(made, ROWS), SingleProcessGroup(), CPU, send, saved
    )


def ends(made: Trained) -> list[dict[str, torch.Tensor]]:
    return [member.module.state_dict() for member in made.members]


def assert_same(one: Trained, other: Trained) -> None:
    """Every member's weights and figures, to the bit."""
    for mine, its in zip(ends(one), ends(other), strict=True):
        assert same_bits(mine, its)
    assert timeless(one.history) == timeless(other.history)
    assert one.primary == other.primary


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("train", [{}, GREEDY], ids=["plain", "phases"])
def test_a_member_is_the_run_of_its_seed(loader: str, train: dict[str, Any]) -> None:
    made = job(NOISY, seeds=3, epochs=2, **train)
    found = trained(made, LOADERS[loader](made, ROWS))
    for number, member in enumerate(found.members, start=1):
        solo = job(NOISY, seed=5 + number - 1, epochs=2, **train)
        assert members.job_of(made, number) == solo
        (alone,) = trained(solo, LOADERS[loader](solo, ROWS)).members
        assert same_bits(member.module.state_dict(), alone.module.state_dict())
        assert timeless(member.history) == timeless(alone.history)
    assert not same_bits(*ends(found)[:2])
    assert [record["member"] for record in found.history] == [1, 1, 2, 2, 3, 3]


def test_one_seed_is_the_run_there_always_was() -> None:
    made = job(NOISY)
    printed: list[tuple[str, Any]] = []
    found, before = trained(made, printed=printed), run(made, ROWS)
    assert same_bits(ends(found)[0], before.state.module.state_dict())
    assert timeless(found.history) == timeless(before.records)
    assert [record["epoch"] for kind, record in printed if kind == "epoch"] == [1, 2, 3, 4]
    assert not any("member" in record for _, record in printed)
    assert (found.primary, found.ensemble) == (1, None)


def test_the_lead_has_the_lowest_error_and_the_lowest_seed_of_equals() -> None:
    def member(**best: float) -> Member:
        return Member(None, [], best)  # type: ignore[arg-type]

    made = job(seeds=3, combine="max")
    held = [member(train_mse=0.1, holdout_mse=mse) for mse in (0.3, 0.2, 0.2)]
    assert Trained(held, made).primary == 2
    assert Trained([member(train_mse=mse) for mse in (0.3, 0.3, 0.2)], made).primary == 3
    assert Trained(held, made).ensemble.model_dump() == {
        "members": 3, "primary": 2, "combine": "max",
    }  # fmt: skip
    assert Trained(held, made).ensemble.others == [1, 3]


def stopping(where: str, step: int) -> Any:
    """Checkpoints whose folder ends with `where` end the run at `step`, as a kill would."""
    save = Checkpoints.save

    def saves(self: Checkpoints, state: State, group: Any = None) -> None:
        save(self, state, group)
        if self.uri.endswith(where) and state.step == step:
            raise Stop

    return patch.object(Checkpoints, "save", saves)


@pytest.mark.parametrize("step", [0, 5, 13, 18])
@pytest.mark.parametrize("where", ["checkpoints", "member-2", "member-3"])
def test_a_killed_ensemble_goes_on_in_the_member_it_was_in(
    tmp_path: Path, where: str, step: int
) -> None:
    """9 steps an epoch: 13 is inside the second, 18 the end of it, 0 is after the phases."""
    made = job(NOISY, seeds=3, epochs=3, checkpoint_every_steps=1, **GREEDY)
    whole = trained(made)
    saved = Checkpoints(str(tmp_path / "checkpoints"), made.run_name, "data", 1)
    with stopping(where, step), pytest.raises(Stop):
        trained(made, saved=saved)
    printed: list[tuple[str, Any]] = []
    steps: list[int] = []

    def counted(model: Any, state: State, *rest: Any) -> Any:
        steps.append(state.step)
        return train_step(model, state, *rest)

    train_step = loop.train_step
    with patch.object(loop, "train_step", counted):
        assert_same(trained(made, saved=saved, printed=printed), whole)
    at = ["checkpoints", "member-2", "member-3"].index(where) + 1
    resumed = [
        (p["member"], p["step"], p["done"], len(p["history"])) for k, p in printed if k == "resumed"
    ]
    finished = [(float(number), 27, True, 3) for number in range(1, at)]
    assert resumed == [*finished, (at, step, False, step // 9)]
    assert len(steps) == 27 - step + 27 * (3 - at)
    notes = [text for kind, text in printed if kind == "note"]
    assert all(text.startswith("member ") for text in notes)
    assert {text[7] for text in notes} == {str(number) for number in range(at + 1, 4)}
    with patch.object(phases, "_learner", side_effect=AssertionError("pretrained again")):
        assert_same(trained(made, saved=saved), whole)


def test_members_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    made = job(seeds=2, epochs=1)
    saved = Checkpoints(str(tmp_path / "checkpoints"), made.run_name, "data", 1)
    trained(made, saved=saved)
    inside = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert inside[1:] == ["member-2"]
    assert inside[0].startswith("00000009.")
    assert saved.of(1) == saved
    saved.of(2).check()
    other = Checkpoints(saved.uri, made.run_name, "other data", 1)
    with pytest.raises(DataError, match=r"member-2/00000009\..*: the shards changed since this"):
        other.of(2).check()
    (tmp_path / "checkpoints" / "member-2").rename(tmp_path / "checkpoints" / "member-3")
    with pytest.raises(DataError, match=f"{made.run_name}, member-2, not to .*, member-3"):
        saved.of(3).check()


def test_an_error_names_the_member() -> None:
    """The first member is trained without harm, the second diverges at once."""
    made = job(seeds=2, epochs=1)
    fit = loop.fit

    def diverges(state: State, *rest: Any, **named: Any) -> None:
        if rest[2].seed == 6:
            for weight in state.module.parameters():
                weight.data.fill_(float("nan"))
        fit(state, *rest, **named)

    with patch.object(loop, "fit", diverges), pytest.raises(TrainingError) as caught:
        trained(made)
    assert str(caught.value).startswith("member 2: stopped at step 0 (epoch 1): worker 0: ")


def test_more_members_than_an_artifact_holds_are_refused_before_the_first_step() -> None:
    widths = {"network": {"widths": [8] * 12}}
    with pytest.raises(SpecError) as caught:
        trained(job(widths, seeds=100))
    assert str(caught.value) == (
        "train.seeds: 100 members of 58 tensors each, an artifact holds 4096; use 70 seeds or fewer"
    )


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_of_another_seed_is_the_one_made_with_it(loader: str) -> None:
    made, other = job(), job(seed=9)
    first = LOADERS[loader](made, ROWS)
    list(first.train(0))
    held = list(first.holdout())
    for epoch in (0, 1):
        expected = LOADERS[loader](other, ROWS).train(epoch)
        for mine, its in zip(first.seeded(9).train(epoch), expected, strict=True):
            np.testing.assert_array_equal(mine.rows, its.rows)
    for mine, its in zip(first.seeded(9).holdout(), held, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_threshold_is_the_quantile_of_the_combined_scores(combine: str) -> None:
    made = job(NOISY, seeds=3, combine=combine, epochs=2)
    found = trained(made)
    loader = memory_loader(made, ROWS)
    held = torch.from_numpy(np.concatenate(list(loader.holdout())))
    assert len(held) == 30
    own = []
    for module in found.modules:
        result = module.eval()(held)
        own.append((result.output_BF - result.clean_BF).square().double().mean(1).detach().numpy())
    together = np.mean(own, axis=0) if combine == "mean" else np.max(own, axis=0)
    calibrated, reference, agreement = calibrate(
        found.modules, made.train.combine, loader, SingleProcessGroup(), 0.9, CPU
    )
    assert calibrated.threshold == pytest.approx(np.quantile(together, 0.9), rel=1e-12)
    assert calibrated.quantiles["0.5"] == pytest.approx(np.median(together), rel=1e-12)
    pairs = [spearmanr(own[i], own[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert agreement == {"rank_agreement": pytest.approx(np.mean(pairs), abs=1e-12)}
    assert len(reference) == calibration.REFERENCE_ROWS
    code = found.modules[0](held).code_BK.detach().numpy()  # the primary member's
    np.testing.assert_allclose(calibrated.hash_threshold, np.median(code, axis=0), rtol=1e-6)


def test_one_member_is_calibrated_as_before() -> None:
    """The quantiles of one member's scores, and nobody to agree with."""
    made = job(epochs=1)
    found = trained(made)
    result = found.modules[0].eval()(
        torch.from_numpy(np.concatenate(list(memory_loader(made, ROWS).holdout())))
    )
    own = (result.output_BF - result.clean_BF).square().mean(dim=1, dtype=torch.float64)
    calibrated, _, agreement = calibrate(
        found.modules, "mean", memory_loader(made, ROWS), SingleProcessGroup(), 0.9, CPU
    )
    assert calibrated.threshold == np.quantile(own.detach().numpy(), 0.9)
    assert agreement == {}


def test_rank_agreement_by_hand_and_against_scipy() -> None:
    first = np.array([0.1, 0.2, 0.3, 0.4])
    assert rank_agreement(np.stack([first, first**3])) == {"rank_agreement": pytest.approx(1.0)}
    assert rank_agreement(np.stack([first, -first])) == {"rank_agreement": pytest.approx(-1.0)}
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1)) = 0.6
    swapped = np.array([0.2, 0.1, 0.4, 0.3])
    assert rank_agreement(np.stack([first, swapped]))["rank_agreement"] == pytest.approx(0.6)
    three = rank_agreement(np.stack([first, swapped, first]))["rank_agreement"]
    assert three == pytest.approx((0.6 + 1.0 + 0.6) / 3)
    tied = np.random.default_rng(3).integers(0, 5, (4, 50)).astype(float)
    expected = spearmanr(tied.T).statistic[np.triu_indices(4, k=1)].mean()
    assert rank_agreement(tied) == {"rank_agreement": pytest.approx(expected, abs=1e-12)}
    assert rank_agreement(np.stack([first, np.ones(4)])) == {}  # a constant ranks nothing
    assert rank_agreement(first[None]) == {}
