"""Tune files: each mistake is one message; the base and its file; round trip."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hourglass.cluster.plan import plan
from hourglass.config import train
from hourglass.config.files import dump, load, load_kind, parse
from hourglass.config.tune import TuneJob
from hourglass.errors import SpecError
from hourglass.settings import Settings
from hourglass.tuning.space import points

BASE = """\
kind: train
data: {uri: /rows, features: {vector: image}}
model: {network: {kind: dense, widths: [4], activation: tanh}}
"""
TUNE = """\
kind: tune
base: base.yaml
space:
  model.network.widths: {grid: [[2], [4]]}
"""
DRAWN = TUNE.replace("grid: [[2], [4]]", "choice: [[2], [4]]")


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`check(text)` loads the text as `tune.yaml` beside `base.yaml`."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)

    def run(text: str, *overrides: str) -> Any:
        Path("tune.yaml").write_text(text)
        return load("tune.yaml", overrides)

    return run


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(SpecError) as caught:
        function(*args)
    return str(caught.value)


SHARED = (
    "trials differ in model, train and data.scaling; they share everything else, which `base` sets"
)
# One mistake each: what is added to the file, and the line that tells about it.
MISTAKES = {
    "unknown field": (
        "metirc: holdout_mse\n",
        "tune.yaml:5: metirc: unknown field, did you mean 'metric'? Allowed: base, concurrency, "
        "gpus_per_worker, kind, max_time_s, max_trials, metric, mode, name, pack, promote_if, "
        "scheduler, search, space, stop, workers_per_trial",
    ),
    "unknown path": (
        "  train.optimizer.lrr: {grid: [1]}\n",
        "tune.yaml:5: space.train.optimizer.lrr: 'lrr' is not a field of train.optimizer, did you mean "
        "'lr'? Allowed: beta1, beta2, kind, lr, momentum, nesterov, weight_decay",
    ),
    "below a value": (
        "  train.epochs.first: {grid: [1]}\n",
        "tune.yaml:5: space.train.epochs.first: 'first' is not a field of train.epochs. It has no "
        "fields",
    ),
    "path of the data": ("  data.uri: {grid: [/a]}\n", f"tune.yaml:5: space.data.uri: {SHARED}"),
    "path of the scale": (
        "  scale.workers: {grid: [1, 2]}\n",
        f"tune.yaml:5: space.scale.workers: {SHARED}",
    ),
    "nothing to search": (
        "  train.checkpoint_every_steps: {grid: [1, 2]}\n",
        "tune.yaml:5: space.train.checkpoint_every_steps: every value gives the same weights, so "
        "there is nothing to search",
    ),
    "field of another kind": (
        "  train.optimizer.momentum: {grid: [0.5]}\n",
        "tune.yaml:5: space.train.optimizer.momentum: 'momentum' is not a field of train.optimizer, which "
        "is of kind adam in every point. Allowed: beta1, beta2, kind, lr; for another kind set "
        "train.optimizer.kind in the base or the space",
    ),
    "field of a default without any": (
        "  model.corruption.sd: {grid: [0.1]}\n",
        "tune.yaml:5: space.model.corruption.sd: 'sd' is not a field of model.corruption, which is of kind "
        "none in every point. Allowed: kind; for another kind set model.corruption.kind in the base or "
        "the space",
    ),
    "index of no item": (
        "  model.penalties.0.beta: {grid: [0.1]}\n",
        "tune.yaml:5: space.model.penalties.0.beta: '0' is not an index of model.penalties, in the base a "
        "list of 0 (from 0); write it there, or choose it in the space above",
    ),
    "unknown way": (
        "  train.epochs: {grids: [1]}\n",
        "tune.yaml:5: space.train.epochs.grids: unknown field, did you mean 'grid'? Allowed: choice, "
        "grid, loguniform, quniform, randint, uniform, when",
    ),
    "two ways": (
        "  train.epochs: {grid: [1], choice: [2]}\n",
        "tune.yaml:5: space.train.epochs: found grid and choice; give exactly one of grid, choice, "
        "uniform, loguniform, randint, quniform",
    ),
    "no way": (
        "  train.epochs: {when: {train.seed: 1}}\n",
        "tune.yaml:5: space.train.epochs: found none; give exactly one of grid, choice, uniform, "
        "loguniform, randint, quniform",
    ),
    "bounds": (
        "  train.optimizer.lr: {loguniform: [0.1, 0.01]}\n",
        "tune.yaml:5: space.train.optimizer.lr.loguniform: low 0.1 must be below high 0.01",
    ),
    "draws in a grid": (
        "  train.optimizer.lr: {uniform: [0.1, 1.0]}\n",
        "tune.yaml:5: space.train.optimizer.lr: search grid takes grids only, found a value to draw",
    ),
    "grid among draws": (
        "search: {kind: random}\nmax_trials: 3\n",
        "tune.yaml:4: space.model.network.widths: search random draws values, found a grid; "
        "use choice",
    ),
    "overwritten": (
        "  model.network: {grid: [{kind: dense, widths: [3]}]}\n",
        "tune.yaml:5: space.model.network: overwrites space.model.network.widths; put it first",
    ),
    "condition about nothing": (
        "  train.epochs: {grid: [3], when: {model.loss.kind: mse}}\n",
        "tune.yaml:5: space.train.epochs.when: neither the base nor the space above sets "
        "'model.loss.kind', so this would never be set",
    ),
    "word that no kind has": (
        "  train.optimizer.kind: {grid: [adma, adam]}\n",
        "tune.yaml:5: space.train.optimizer.kind: found 'adma', did you mean 'adam'? "
        "Allowed: adam, adamw, sgd",
    ),
    "misspelt preset": (
        "  model.preset: {grid: [anomlay, sparse]}\n",
        "tune.yaml:5: space.model.preset: found 'anomlay', did you mean 'anomaly'? "
        "Allowed: undercomplete, sparse, k_sparse, denoising, contractive, robust, variational, "
        "semantic_hashing, adversarial, anomaly",
    ),
    "condition on no field": (
        "  train.epochs: {grid: [3], when: {model.lss: mse}}\n",
        "tune.yaml:5: space.train.epochs.when: 'lss' is not a field of model, did you mean 'loss'? "
        "Allowed: adversary, code, corruption, loss, network, penalties, preset, scaled_score, trim",
    ),
    "scalings in their own units": (
        "  data.scaling: {grid: [{kind: unit}, {kind: range}]}\n",
        "tune.yaml:1: metric holdout_mse of different scalings is in different units; "
        "use metric: holdout_fvu",
    ),
    "a grid without end": (
        f"  train.epochs: {{grid: {list(range(1, 102))}}}\n"
        f"  train.batch_size: {{grid: {list(range(1, 101))}}}\n",
        "tune.yaml:1: the grid has 20200 points, allowed are 10000; set max_trials",
    ),
}


@pytest.mark.parametrize(("more", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(check: Any, more: str, line: str) -> None:
    assert refusal(check, TUNE + more) == f"tune.yaml: 1 mistake\n  {line}"


def test_all_mistakes_are_told_at_once(check: Any) -> None:
    reported = refusal(check, TUNE + "  modle.trim: {grid: [1]}\nconcurrency: 0\nmax_trials: 0\n")
    first, *lines = reported.splitlines()
    assert first == "tune.yaml: 3 mistakes"
    fields = [line.split(": ")[1] for line in lines]
    assert sorted(fields) == ["concurrency", "max_trials", "space.modle.trim"]


def test_contradictions_are_told_at_once_each_in_its_line(check: Any) -> None:
    text = TUNE + "  train.optimizer.lr: {uniform: [0.1, 1.0]}\nmode: max\npack: always\n"
    text += "stop: {patience: 2}\npromote_if: better_than_champion\n"
    assert refusal(check, text).splitlines() == [
        "tune.yaml: 4 mistakes",
        "  tune.yaml:5: space.train.optimizer.lr: search grid takes grids only, found a value to draw",
        "  tune.yaml:1: promote_if needs base.track.register, the model whose champion is meant",
        "  tune.yaml:1: metric holdout_mse is best at its minimum, found mode: max; change it",
        "  tune.yaml:1: pack: always trains whole trials together, found stop; use pack: auto",
    ]


def test_the_example_of_the_documentation_has_twenty_jobs(
    check: Any, pytestconfig: pytest.Config
) -> None:
    root = pytestconfig.rootpath
    text = (root / "docs" / "tuning.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    found = points(check(text.replace("../jobs", f"{root}/jobs")))
    assert [point.reason for point in found] == [""] * 20


def test_penalties_of_a_preset_are_written_out_before_they_are_searched(check: Any) -> None:
    """A path goes into what the base says; the preset's list is not there."""
    text = TUNE + "  model.penalties.0.beta: {grid: [0.1]}\n"
    reported = refusal(check, text, "base.model.preset=sparse")
    assert "'0' is not an index of model.penalties, in the base a list of 0 (from 0)" in reported
    own = "base.model.penalties=[{kind: sparsity_kl, rho: 0.05, beta: 1.0e-3}]"
    betas = [p.job.model.penalties[0].beta for p in points(check(text, own)) if p.job]
    assert betas == [0.1, 0.1]


def test_a_random_search_needs_a_number(check: Any) -> None:
    reported = refusal(check, DRAWN + "search: {kind: random}\n")
    assert reported.endswith("search random needs max_trials, the number of points to draw")


def test_the_base_is_a_file_or_a_job_and_is_checked_as_one(check: Any) -> None:
    sweep = check(TUNE)
    assert sweep.job == load(Path("base.yaml"))
    assert sweep.name == "tune"
    tree = dump(sweep)
    assert parse(tree) == sweep
    assert check(TUNE, "base.train.epochs=3").job.train.epochs == 3
    reported = refusal(check, TUNE, "base.train.epohcs=3")
    assert "tune.yaml (--set): base.train.epohcs: unknown field, did you mean 'epochs'?" in reported
    Path("base.yaml").write_text(BASE + "trian: {}\n")
    assert refusal(check, TUNE).startswith("base.yaml: 1 mistake\n  base.yaml:4: trian: unknown")
    assert refusal(check, TUNE.replace("base.yaml", "none.yaml")) == "none.yaml: no such file"
    for kind in ("tune", "score"):
        Path("other.yaml").write_text(f"kind: {kind}\nbase: tune.yaml\n")
        assert refusal(check, TUNE.replace("base.yaml", "other.yaml")) == (
            f"tune.yaml: base: found a {kind} job in other.yaml, allowed is a train job"
        )


def test_nothing_that_the_base_says_is_lost(check: Any) -> None:
    """`null` in the base is a word: it takes away what a preset brings."""
    sweep = check(TUNE, "base.model.adversary=null", "base.train.clip_norm=null")
    assert parse(dump(sweep)) == sweep
    assert sweep.base["model"]["adversary"] is None


def test_streams_are_refused(check: Any) -> None:
    reported = refusal(check, TUNE, "base.data.cache=stream")
    assert reported.endswith(
        "trials share the rows in memory, found base.data.cache: stream; use auto"
    )


def test_rows_must_be_held_out_for_a_holdout_metric(check: Any) -> None:
    reported = refusal(check, TUNE, "base.data.holdout=0")
    assert reported.endswith(
        "metric holdout_mse needs held-out rows; set base.data.holdout above 0"
    )
    assert check(TUNE, "base.data.holdout=0", "metric=train_mse").metric == "train_mse"


ASHA = "scheduler: {kind: asha}\n"
PBT = """\
kind: tune
base: base.yaml
space:
  train.optimizer.lr: {loguniform: [1.0e-4, 0.1]}
search: {kind: random}
max_trials: 8
scheduler: {kind: pbt}
"""
# What does not go together: the file, the overrides, the message.
CONTRADICTIONS = {
    "optuna without an end": (
        DRAWN,
        ["search.kind=optuna"],
        "search optuna needs max_trials, the number of points to draw",
    ),
    "a grid for optuna": (
        TUNE,
        ["search.kind=optuna", "max_trials=3"],
        "space.model.network.widths: search optuna draws values, found a grid; use choice",
    ),
    "members under a scheduler": (
        TUNE + ASHA,
        ["base.train.seeds=2"],
        "scheduler asha compares epochs of single models, found train.seeds; remove it",
    ),
    "workers under a scheduler": (
        TUNE + ASHA,
        ["workers_per_trial=2"],
        "scheduler asha stops trials of one worker only, found workers_per_trial 2; use scheduler "
        "none, or one worker",
    ),
    "packs under a scheduler": (
        TUNE + "scheduler: {kind: median}\n",
        ["pack=always"],
        "pack: always trains whole trials together, found scheduler median; use pack: auto",
    ),
    "packs with patience": (
        TUNE,
        ["pack=always", "stop={patience: 2}"],
        "pack: always trains whole trials together, found stop; use pack: auto",
    ),
    "packs of workers": (
        TUNE,
        ["pack=always", "workers_per_trial=2"],
        "pack: always trains whole trials together, found workers_per_trial: 2; use pack: auto",
    ),
    "agreement of one": (
        TUNE,
        ["metric=rank_agreement", "mode=max"],
        "metric rank_agreement is that of several members; set base.train.seeds to 2 or more",
    ),
    "agreement of epochs": (
        TUNE + ASHA,
        ["metric=rank_agreement", "mode=max", "base.train.seeds=2"],
        "scheduler asha compares epochs, found metric rank_agreement, which is known at the end only",
    ),
    "the lowest agreement": (
        TUNE,
        ["metric=rank_agreement", "base.train.seeds=2"],
        "metric rank_agreement is best at its maximum, found mode: min; change it",
    ),
    "the largest error": (
        TUNE,
        ["mode=max"],
        "metric holdout_mse is best at its minimum, found mode: max; change it",
    ),
    "workers that share a GPU": (
        TUNE,
        ["workers_per_trial=2", "gpus_per_worker=0.5"],
        "workers of one trial need a whole GPU each, found gpus_per_worker below 1; set it to 1",
    ),
    "grace to the end": (
        TUNE + ASHA,
        ["base.train.epochs=2"],
        "scheduler asha leaves 2 epochs to every trial, found base.train.epochs: 2, so it would do "
        "nothing",
    ),
    "a population that stops early": (
        PBT,
        ["base.train.early_stop={patience: 3}"],
        "scheduler pbt continues trials, found base.train.early_stop, after which nothing can be continued; "
        "set it to null",
    ),
    "promotion of nothing": (
        TUNE,
        ["promote_if=better_than_champion"],
        "promote_if needs base.track.register, the model whose champion is meant",
    ),
    "a population on a grid": (
        PBT.replace("loguniform: [1.0e-4, 0.1]", "grid: [0.1]"),
        ["search.kind=grid"],
        "scheduler pbt begins with random points, found search grid",
    ),
    "a population of one": (
        PBT,
        ["max_trials=1"],
        "scheduler pbt needs a population, found max_trials: 1; use 4 or more",
    ),
    "a population that never changes": (
        PBT,
        ["base.train.epochs=2"],
        "scheduler pbt compares every 2 epochs, found base.train.epochs: 2, so it would do nothing",
    ),
    "a population with patience": (
        PBT,
        ["stop={patience: 2}"],
        "scheduler pbt trains a population to its end, found stop; remove it",
    ),
    "shapes in a population": (
        PBT.replace(
            "train.optimizer.lr: {loguniform: [1.0e-4, 0.1]}",
            "train.batch_size: {randint: [8, 64]}",
        ),
        [],
        "space.train.batch_size: scheduler pbt changes numbers while a trial trains, which are those "
        "of train.optimizer, train.clip_norm, model.penalties, model.corruption",
    ),
    "kinds in a population": (
        PBT.replace(
            "train.optimizer.lr: {loguniform: [1.0e-4, 0.1]}",
            "train.optimizer.kind: {choice: [adam, sgd]}",
        ),
        [],
        "space.train.optimizer.kind: scheduler pbt changes numbers while a trial trains, which are "
        "those of train.optimizer, train.clip_norm, model.penalties, model.corruption",
    ),
}


@pytest.mark.parametrize(
    ("text", "overrides", "printed"), CONTRADICTIONS.values(), ids=CONTRADICTIONS
)
def test_what_does_not_go_together(
    check: Any, text: str, overrides: list[str], printed: str
) -> None:
    assert f": {printed}" in refusal(check, text, *overrides)


def test_a_population_is_a_sweep(check: Any) -> None:
    assert check(PBT).scheduler.kind == "pbt"
    assert check(DRAWN, "search.kind=optuna", "max_trials=3").search.startup == 8


def test_a_command_says_which_one_runs_the_file(check: Any) -> None:
    check(TUNE)
    reported = refusal(load_kind, train.TrainJob, "tune.yaml")
    assert reported == "tune.yaml: found a tune job; run `hourglass tune tune.yaml`"
    assert isinstance(load_kind(TuneJob, "tune.yaml"), TuneJob)


def test_a_sweep_is_submitted_with_its_base_in_it(check: Any, tmp_path: Path) -> None:
    check(TUNE)
    sent = plan("tune.yaml", ["base.data.uri=rows"], settings=Settings(home=tmp_path))
    assert sent.command == "hourglass tune job.yaml"
    tree = yaml.safe_load(sent.content)
    assert tree["base"]["data"]["uri"] == str(tmp_path / "rows")
    assert parse(tree) == check(TUNE, f"base.data.uri={tmp_path / 'rows'}")
