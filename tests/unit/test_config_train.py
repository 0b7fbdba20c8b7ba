"""Job files: each mistake is one message; overrides; round trip; run names; schedules."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hourglass.config.files import dump, load, parse
from hourglass.config.train import (
    IDENTITY,
    Adam,
    Constant,
    Cosine,
    OneCycle,
    ScoreJob,
    TrainJob,
    TrainSpec,
)
from hourglass.config.train import TRAIN as TRAIN_FIELDS
from hourglass.errors import SpecError, nearest
from hourglass.model.adversary import Gaussian
from hourglass.strict import canonical

TRAIN = """\
kind: train
data:
  uri: /rows
  features: {vector: image}
model:
  network: {kind: dense, widths: [4]}
"""
SCORE = """\
kind: score
model: models:/digits@champion
uri: /rows
output: /scored
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`check(text, overrides)` loads the text as `job.yaml` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def run(text: str | bytes, overrides: Sequence[str] = ()) -> Any:
        Path("job.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load("job.yaml", overrides)

    return run


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(SpecError) as caught:
        function(*args)
    return str(caught.value)


def model(lines: str) -> str:
    return TRAIN + "".join(f"  {line}\n" for line in lines.splitlines())


# One mistake each: the file, and the line that tells about it.
MISTAKES = {
    "unknown field": (
        TRAIN + "trian: {}\n",
        "job.yaml:7: trian: unknown field, did you mean 'train'? "
        "Allowed: data, kind, model, name, quantile, scale, track, train",
    ),
    "unknown field, nothing near": (
        TRAIN + "zzzz: 1\n",
        "job.yaml:7: zzzz: unknown field. "
        "Allowed: data, kind, model, name, quantile, scale, track, train",
    ),
    "unknown nested field": (
        TRAIN + "train:\n  epochs: 3\n  early_stop: {patience: 2, min_dleta: 0}\n",
        "job.yaml:9: train.early_stop.min_dleta: unknown field, did you mean 'min_delta'? "
        "Allowed: min_delta, patience",
    ),
    "unknown field of a part": (
        TRAIN + "train:\n  optimizer:\n    kind: adam\n    lrr: 1\n",
        "job.yaml:10: train.optimizer.lrr: unknown field, did you mean 'lr'? "
        "Allowed: beta1, beta2, kind, lr",
    ),
    "alias, not the attribute's name": (
        TRAIN + "track: {register_as: digits}\n",
        "job.yaml:7: track.register_as: unknown field, did you mean 'register'? "
        "Allowed: experiment, register",
    ),
    "missing field": (
        "kind: train\ndata: {uri: /rows, features: {vector: image}}\n",
        "job.yaml:1: model: required field is missing",
    ),
    "missing nested field": (
        TRAIN.replace("  uri: /rows\n", ""),
        "job.yaml:3: data.uri: required field is missing",
    ),
    "wrong kind of job": (
        TRAIN.replace("kind: train", "kind: trian"),
        "job.yaml:1: found kind 'trian', did you mean 'train'? Allowed: train, score, tune",
    ),
    "no kind of job": (TRAIN.replace("kind: train\n", ""), "job.yaml:1: `kind` is missing"),
    "wrong kind of part": (
        model("loss: {kind: msee}"),
        "job.yaml:7: model.loss: found kind 'msee', did you mean 'mse'? "
        "Allowed: mse, mae, huber, bce, correntropy",
    ),
    "no kind of part": (
        model("corruption: {p: 0.1}"),
        "job.yaml:7: model.corruption: `kind` is missing",
    ),
    "word": (
        TRAIN + "scale: {accelerator: gpuu}\n",
        "job.yaml:7: scale.accelerator: found 'gpuu', did you mean 'gpu'? "
        "Allowed: 'auto', 'cpu' or 'gpu'",
    ),
    "word in a list": (
        SCORE + "outputs: [code, hahs]\n",
        "job.yaml:5: outputs.1: found 'hahs', did you mean 'hash'? "
        "Allowed: 'code', 'hash', 'score', 'reconstruction' or 'feature_errors'",
    ),
    "word or number": (
        TRAIN + "scale: {cpus_per_worker: -1}\n",
        "job.yaml:7: scale.cpus_per_worker: found -1. Allowed: 'auto'; "
        "or input should be greater than 0",
    ),
    "words of two kinds": (
        SCORE + "missing: eror\n",
        "job.yaml:5: missing: found 'eror'. Allowed: 'auto'; "
        "or did you mean 'error'? Allowed: 'error', 'drop_row' or 'mean'",
    ),
    "text or list": (
        TRAIN.replace("/rows", "5"),
        "job.yaml:3: data.uri: found 5; input should be a valid string; or input should be a list",
    ),
    "too small": (
        TRAIN + "train: {epochs: 0}\n",
        "job.yaml:7: train.epochs: found 0; input should be greater than 0",
    ),
    "too large": (
        model("corruption: {kind: zeros, p: 1.0}"),
        "job.yaml:7: model.corruption.p: found 1.0; input should be less than 1",
    ),
    "not a number": (
        TRAIN + "train: {epochs: many}\n",
        "job.yaml:7: train.epochs: found 'many'; input should be a valid integer, "
        "unable to parse string as an integer",
    ),
    "NaN": (
        TRAIN + "train: {optimizer: {kind: adam, lr: .nan}}\n",
        "job.yaml:7: train.optimizer.lr: found nan; input should be a finite number",
    ),
    "infinity": (
        SCORE + "threshold: .inf\n",
        "job.yaml:5: threshold: found inf. Allowed: 'auto'; or input should be a finite number",
    ),
    "infinity as text": (
        TRAIN + "train: {clip_norm: 1e999}\n",
        "job.yaml:7: train.clip_norm: found '1e999'; input should be a finite number",
    ),
    "inside a list": (
        TRAIN.replace("[4]", "[4, 0]"),
        "job.yaml:6: model.network.widths.1: found 0; input should be greater than 0",
    ),
    "a width that nothing could hold": (
        TRAIN.replace("[4]", "[4, 9999999999]"),
        "job.yaml:6: model.network.widths.1: found 9999999999; "
        "input should be less than or equal to 1073741824",
    ),
    "inside a list of parts": (
        model(
            "penalties:\n- {kind: sparsity_kl, rho: 0.1, beta: 1}\n- {kind: l1, rho: 0.1, beta: 1}"
        ),
        "job.yaml:9: model.penalties.1: found kind 'l1'. Allowed: sparsity_kl, code_l1, code_l2, "
        "weights_l1, weights_l2, contractive, aux_k, nested, kl_prior",
    ),
    "single value for a mapping": (
        TRAIN + "train: 5\n",
        "job.yaml:7: train: found 5; input should be a mapping of fields",
    ),
    "mapping for a list": (
        model("penalties: {kind: sparsity_kl}"),
        "job.yaml:7: model.penalties: found {'kind': 'sparsity_kl'}; input should be a list",
    ),
    "name": (
        TRAIN + "name: two words\n",
        "job.yaml:7: name: found 'two words'; "
        "string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'",
    ),
    "two ways to choose features": (
        TRAIN.replace("{vector: image}", "{vector: image, columns: [x]}"),
        "job.yaml:4: data.features: give either `vector: NAME` or `columns: [GLOB, ...]`, "
        "not both or none",
    ),
    "Nesterov's momentum": (
        TRAIN + "train: {optimizer: {kind: sgd, nesterov: true}}\n",
        "job.yaml:7: train.optimizer: nesterov needs momentum above 0, found 0",
    ),
    "early stop without a holdout": (
        TRAIN.replace("uri: /rows", "uri: /rows\n  holdout: 0") + "train: {early_stop: {}}\n",
        "job.yaml:1: train.early_stop watches the holdout error; set data.holdout above 0",
    ),
    "cross-entropy of data outside [0, 1]": (
        model("loss: {kind: bce}"),
        "job.yaml:1: loss bce needs features in [0, 1], found scaling 'range': "
        "set data.scaling to {kind: unit}",
    ),
    "cross-entropy of another output": (
        TRAIN.replace("widths: [4]", "widths: [4], output_activation: tanh")
        + "  loss: {kind: bce}\n",
        "job.yaml:6: model: loss bce needs output_activation sigmoid or auto, found 'tanh'",
    ),
    "a posterior without its prior": (
        TRAIN + "  code: {kind: gaussian_posterior}\n",
        "job.yaml:6: model: code gaussian_posterior needs penalty kl_prior: without it the variances "
        "shrink to 0 and the model is a plain one; add {kind: kl_prior, beta: ...} to penalties",
    ),
    "a prior without a posterior": (
        TRAIN + "  penalties: [{kind: kl_prior, beta: 1}]\n",
        "job.yaml:6: model: penalty kl_prior needs code gaussian_posterior, whose means and variances "
        "it compares with the prior; found code 'plain'",
    ),
    "reviving units of a plain code": (
        TRAIN + "  penalties: [{kind: aux_k}]\n",
        "job.yaml:6: model: penalty aux_k needs code top_k or batch_top_k, whose unused units it revives; "
        "found code 'plain'",
    ),
    "nested widths out of order": (
        TRAIN + "  penalties: [{kind: nested, widths: [2, 4]}]\n",
        "job.yaml:6: model: penalty nested: widths [2, 4] must increase and stay below the code's 4 units",
    ),
    "more than all units": (
        TRAIN + "  code: {kind: top_k, k: 5}\n",
        "job.yaml:6: model: code top_k: k is 5, the code has 4 units",
    ),
    "second derivatives of an LSTM": (
        TRAIN.replace("dense, widths: [4]", "lstm, shape: [2, 3], code: 2")
        + "  penalties: [{kind: contractive, weight: 1}]\n",
        "job.yaml:6: model: penalty contractive needs second derivatives, which the LSTM of a GPU "
        "does not have; use network dense or conv",
    ),
    "batch norm on workers": (
        TRAIN.replace("widths: [4]", "widths: [5, 4], norm: batch") + "scale: {workers: 2}\n",
        "job.yaml:1: network dense: norm: batch takes the statistics of one worker's rows, so 2 "
        "workers would train a different model than one; use norm: layer, or scale.workers: 1",
    ),
    "columns dropped from a shape": (
        TRAIN.replace("dense, widths: [4]", "lstm, shape: [2, 3], code: 2").replace(
            "  uri: /rows", "  uri: /rows\n  constant: drop"
        ),
        "job.yaml:1: network lstm needs every column of its shape, found data.constant: drop; keep them",
    ),
    "hashing code of another activation": (
        TRAIN.replace("widths: [4]", "widths: [4], code_activation: tanh")
        + "  code: {kind: gaussian_noise, sd: 1}\n",
        "job.yaml:6: model: code gaussian_noise needs a sigmoid code, found 'tanh': "
        "its noise acts before the logistic; remove network.code_activation",
    ),
    "sparsity of an unbounded code": (
        TRAIN.replace("widths: [4]", "widths: [4], activation: relu")
        + "  penalties: [{kind: sparsity_kl, rho: 0.1, beta: 1}]\n",
        "job.yaml:6: model: penalty sparsity_kl needs a bounded code (sigmoid or tanh), "
        "found 'relu': set network.code_activation",
    ),
    "sparsity outside the code's range": (
        TRAIN.replace("widths: [4]", "widths: [4], activation: sigmoid")
        + "  penalties: [{kind: sparsity_kl, rho: 0, beta: 1}]\n",
        "job.yaml:6: model: penalty sparsity_kl: rho must lie inside the code's range "
        "(0, 1) of 'sigmoid', found 0",
    ),
    "an adversary of a code with zeros": (
        TRAIN.replace("widths: [4]", "widths: [4], activation: linear")
        + "  code: {kind: batch_top_k, k: 2}\n  adversary: {}\n",
        "job.yaml:6: model: adversary: a code batch_top_k has units at exactly 0, which no draw of prior "
        "gaussian has, so it can never pass for one; use code plain",
    ),
    "an adversary of a posterior": (
        TRAIN + "  adversary: {}\n  code: {kind: gaussian_posterior}\n"
        "  penalties: [{kind: kl_prior, beta: 1}]\n",
        "job.yaml:6: model: code gaussian_posterior has its prior from penalty kl_prior, found an "
        "adversary as well; use code plain, or remove the adversary",
    ),
    "a prior wider than the code": (
        model("adversary: {prior: {kind: mixture}}"),
        "job.yaml:6: model: adversary: draws of prior mixture lie in (-inf, inf), a 'tanh' code in "
        "(-1, 1), so it can never pass for one; use network.code_activation: linear, or a prior uniform "
        "inside the code's range",
    ),
    "a prior beside the code": (
        TRAIN.replace("widths: [4]", "widths: [4], activation: sigmoid")
        + "  adversary: {prior: {kind: uniform}}\n",
        "job.yaml:6: model: adversary: draws of prior uniform lie in (-1, 1), a 'sigmoid' code in (0, 1), "
        "so it can never pass for one; use network.code_activation: linear, or a prior uniform inside "
        "the code's range",
    ),
    "an empty prior": (
        model("adversary: {prior: {kind: uniform, low: 1}}"),
        "job.yaml:7: model.adversary.prior: low must be below high, found 1 and 1",
    ),
    "an adversarial model without its adversary": (
        model("preset: adversarial\nadversary: null"),
        "job.yaml:6: model: preset adversarial is its adversary, found null; remove one of them",
    ),
    "the same penalty twice": (
        model("penalties: [&p {kind: sparsity_kl, rho: 0.1, beta: 1}, *p]"),
        "job.yaml:6: model: penalties must differ in kind, "
        "found ['sparsity_kl', 'sparsity_kl']: add up their weights",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_one_mistake_is_one_sentence(check: Any, text: str, message: str) -> None:
    assert refusal(check, text) == f"job.yaml: 1 mistake\n  {message}"


def test_all_mistakes_at_once(check: Any) -> None:
    text = TRAIN.replace("[4]", "[]") + "train: {epochs: 0, seed: -1}\nscael: {}\n"
    assert refusal(check, text).splitlines() == [
        "job.yaml: 4 mistakes",
        "  job.yaml:6: model.network.widths: found []; "
        "tuple should have at least 1 item after validation, not 0",
        "  job.yaml:7: train.epochs: found 0; input should be greater than 0",
        "  job.yaml:7: train.seed: found -1; input should be greater than or equal to 0",
        "  job.yaml:8: scael: unknown field, did you mean 'scale'? "
        "Allowed: data, kind, model, name, quantile, scale, track, train",
    ]


def test_contradictions_are_told_at_once(check: Any) -> None:
    """Those of the model's parts with one another first, then those of the job's."""
    text = TRAIN.replace("widths: [4]", "widths: [4], output_activation: tanh")
    assert refusal(
        check, text + "  loss: {kind: bce}\n  code: {kind: top_k, k: 5}\n"
    ).splitlines() == [
        "job.yaml: 2 mistakes",
        "  job.yaml:6: model: code top_k: k is 5, the code has 4 units",
        "  job.yaml:6: model: loss bce needs output_activation sigmoid or auto, found 'tanh'",
    ]
    text = TRAIN.replace("uri: /rows", "uri: /rows\n  holdout: 0")
    assert refusal(check, text + "train: {early_stop: {}, combine: max}\n").splitlines() == [
        "job.yaml: 2 mistakes",
        "  job.yaml:1: train.early_stop watches the holdout error; set data.holdout above 0",
        "  job.yaml:1: train.combine: max has no effect with one seed; set train.seeds to 2 or more, "
        "or remove it",
    ]


def test_a_long_value_is_cut(check: Any) -> None:
    message = refusal(check, TRAIN + f"train: {{epochs: {'x' * 500}}}\n")
    assert f"found '{'x' * 56}...; input" in message


NOT_A_JOB = {
    "key twice": (TRAIN + "kind: train\n", "job.yaml:7: 'kind' is given twice; keep one"),
    "nested key twice": (
        TRAIN.replace("widths: [4]", "widths: [4], widths: [5]"),
        "job.yaml:6: 'widths' is given twice; keep one",
    ),
    "not YAML": (
        TRAIN + "train: {epochs: 1\n",
        "job.yaml:8: expected ',' or '}', but got '<stream end>'",
    ),
    "tab": (
        "kind: train\n\tdata: 1\n",
        "job.yaml:2: found character '\\t' that cannot start any token",
    ),
    "Python object": (
        TRAIN + "name: !!python/object/apply:os.system [ls]\n",
        "job.yaml:7: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "binary": ("kind: \x00", "job.yaml: not YAML"),
    "not UTF-8": (b"kind: tr\xe4in\n", "job.yaml: not UTF-8 text (byte 8)"),
    "no such day": (
        TRAIN + "name: 2026-13-45\n",
        "job.yaml: month must be in 1..12; put quotes around text",
    ),
    "list": (
        "- kind: train\n",
        "job.yaml: not a mapping; a job file starts with `kind: train`, `kind: score` or `kind: tune`",
    ),
    "empty": (
        "",
        "job.yaml: not a mapping; a job file starts with `kind: train`, `kind: score` or `kind: tune`",
    ),
    "deep": (TRAIN + "name: " + "[" * 1000, "job.yaml: nested too deeply"),
    "holds itself": (TRAIN + "name: &a [*a]\n", "job.yaml: nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), NOT_A_JOB.values(), ids=NOT_A_JOB)
def test_not_a_job(check: Any, text: str | bytes, message: str) -> None:
    assert refusal(check, text) == message


def test_no_file_folder_and_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert refusal(load, "nowhere.yaml") == "nowhere.yaml: no such file"
    assert refusal(load, "folder") == "folder: is a folder; pass a YAML file"
    Path("file").touch()
    assert refusal(load, "file/job.yaml") == "file/job.yaml: Not a directory"


OVERRIDES: list[tuple[str, str, Any]] = [
    ("train.epochs=3", "train.epochs", 3),
    ("data.uri=[/a, /b]", "data.uri", ("/a", "/b")),
    ("data.uri=/a=b", "data.uri", "/a=b"),
    ("train.optimizer={kind: sgd, lr: 1e-2}", "train.optimizer.lr", 0.01),
    ("train.early_stop.patience=2", "train.early_stop.patience", 2),
    ("train.clip_norm=null", "train.clip_norm", None),
    ("model.network.widths.0=9", "model.network.widths", (9,)),
    ("name=other", "name", "other"),
    ("track.register=digits", "track.register_as", "digits"),
]


@pytest.mark.parametrize(("override", "path", "value"), OVERRIDES, ids=[o for o, _, _ in OVERRIDES])
def test_set(check: Any, override: str, path: str, value: Any) -> None:
    found = check(TRAIN, [override])
    for step in path.split("."):
        found = getattr(found, step)
    assert found == value


def test_fields_that_name_no_kind_are_those_of_the_default(check: Any) -> None:
    job = check(TRAIN, ["train.optimizer.lr=0.01", "train.schedule.warmup_steps=3"])
    assert (job.train.optimizer, job.train.schedule) == (Adam(lr=0.01), Constant(warmup_steps=3))
    named = [
        "train.optimizer={kind: adam, lr: 0.01}",
        "train.schedule={kind: constant, warmup_steps: 3}",
    ]
    assert check(TRAIN, named).run_name == job.run_name
    prior = ["model.adversary.prior.sd=2", "model.network.code_activation=linear"]
    assert check(TRAIN, prior).model.adversary.prior == Gaussian(sd=2.0)
    assert refusal(check, TRAIN, ["train.optimizer.momentum=0.5"]).splitlines() == [
        "job.yaml: 1 mistake",
        "  job.yaml (--set): train.optimizer.momentum: unknown field. Allowed: beta1, beta2, kind, lr",
    ]


@pytest.mark.parametrize(
    "train",
    [{"optimizer": {"lr": 0.1}}, {"schedule": {"warmup_steps": 3}}, {"optimizer": {"kind": "sgd"}}],
)
def test_the_published_schema_takes_them_too(train: dict[str, Any]) -> None:
    tree = {"kind": "train", "data": {"uri": "u", "features": {"vector": "x"}}, "train": train}
    tree["model"] = {"network": {"widths": [3]}}
    published = jsonschema.Draft202012Validator(TRAIN_FIELDS.json_schema(by_alias=True))
    assert published.is_valid(tree)
    assert parse(tree).kind == "train"
    wrong = tree | {"train": {"optimizer": {"lrr": 0.1}}}
    assert not published.is_valid(wrong)


def test_later_set_wins_and_null_sections_open(check: Any) -> None:
    job = check(TRAIN + "train:\n", ["train.epochs=3", "train.seed=5", "train.epochs=4"])
    assert (job.train.epochs, job.train.seed) == (4, 5)


def test_set_changes_one_of_two_aliases_only(check: Any) -> None:
    text = TRAIN.replace("{vector: image}", "{columns: &names [a, b], exclude: *names}")
    features = check(text, ["data.features.exclude.0=c"]).data.features
    assert (features.columns, features.exclude) == (("a", "b"), ("c", "b"))


BAD_OVERRIDES = {
    "train.epochs": "allowed is a.b=value, for example train.epochs=20",
    "=3": "allowed is a.b=value, for example train.epochs=20",
    "train..epochs=3": "allowed is a.b=value, for example train.epochs=20",
    "train.epochs=[": "the value is not YAML",
    "name=2026-13-45": "the value is not YAML",
    "kind.of=3": "'kind' is a single value and has no fields",
    "data.uri.x.y=3": "'uri' is a single value and has no fields",
    "model.network.widths.1=3": "found '1', allowed are indexes of a list of 1 items, from 0",
    "model.network.widths.-1=3": "found '-1', allowed are indexes of a list of 1 items, from 0",
    "model.network.widths.first=3": "found 'first', allowed are indexes of a list of 1 items, from 0",
    "model.network.widths.7.x=3": "found '7', allowed are indexes of a list of 1 items, from 0",
}


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES.items(), ids=BAD_OVERRIDES)
def test_bad_set(check: Any, override: str, message: str) -> None:
    assert refusal(check, TRAIN, [override]) == f"--set {override}: {message}"


def test_a_mistake_of_an_override_is_not_blamed_on_a_line(check: Any) -> None:
    text = TRAIN + "train: {epochs: 3, seed: 1}\nquantile: 2\n"
    for overrides in (["train.epochs=0"], ["train={epochs: 0}"]):
        assert refusal(check, text, overrides).splitlines() == [
            "job.yaml: 2 mistakes",
            "  job.yaml (--set): train.epochs: found 0; input should be greater than 0",
            "  job.yaml:8: quantile: found 2; input should be less than 1",
        ]


def test_an_unknown_path_of_an_override_is_a_mistake(check: Any) -> None:
    assert refusal(check, TRAIN, ["train.epoch=3"]) == (
        "job.yaml: 1 mistake\n  job.yaml (--set): train.epoch: unknown field, "
        "did you mean 'epochs'? Allowed: batch_size, checkpoint_every_steps, clip_norm, "
        "combine, early_stop, epochs, optimizer, phases, schedule, seed, seeds"
    )


JOBS = {
    "train": TRAIN,
    "score": SCORE,
    "train in full": TRAIN
    + """\
  corruption: {kind: salt_pepper, p: 0.2}
  penalties: [{kind: sparsity_kl, rho: 0.05, beta: 3.0}]
train:
  optimizer: {kind: adamw, lr: 1e-3}
  schedule: {kind: one_cycle}
  early_stop: {patience: 3}
scale: {workers: 4, cpus_per_worker: 1.5}
track: {experiment: mnist, register: mnist}
""",
    "score in full": SCORE + "threshold: 0.25\nmissing: mean\noutputs: [hash]\npassthrough: [id]\n",
}


@pytest.mark.parametrize("text", JOBS.values(), ids=JOBS)
def test_round_trip(check: Any, text: str) -> None:
    job = check(text)
    assert isinstance(job, TrainJob if "train" in text.splitlines()[0] else ScoreJob)
    assert parse(dump(job)) == job
    assert job.name == "job"  # the file's


def test_parse_tells_the_same_mistakes() -> None:
    assert refusal(parse, {"kind": "score", "model": "m", "uri": "u", "outptu": "o"}) == (
        "job: 2 mistakes\n"
        "  job: output: required field is missing\n"
        "  job: outptu: unknown field, did you mean 'output'? Allowed: accelerator, kind, "
        "manifest, missing, model, name, output, outputs, passthrough, threshold, uri, wait_s, "
        "workers"
    )


def test_jobs_are_frozen(check: Any) -> None:
    with pytest.raises(ValueError, match="frozen"):
        check(TRAIN).train.epochs = 3


DECISIVE = [
    "data.uri=/other",
    "data.holdout=0.2",
    "data.scaling={kind: unit}",
    "data.shuffle_rows=7",
    "model.network.widths=[5]",
    "model.network.activation=relu",
    "model.adversary={prior: {kind: uniform}}",
    "model.adversary={prior: {kind: uniform}, lr: 0.1}",
    "train.epochs=11",
    "train.batch_size=257",
    "train.seed=1",
    "train.clip_norm=1",
    "train.seeds=2",
    "scale.workers=2",
]
INDIFFERENT = [
    "track.experiment=other",
    "track.register=digits",
    "quantile=0.9",
    "scale.max_failures=9",
    "scale.wait_s=5",
    "train.checkpoint_every_steps=10",
    "train.epochs=10",
    "train.seeds=1",
    "train.combine=mean",
    "data.holdout=0.10",
]


def test_run_name_is_a_function_of_what_decides_the_weights(check: Any) -> None:
    name = check(TRAIN).run_name
    assert name.startswith("job-")
    assert len(name) == len("job-") + 8
    assert {check(TRAIN, [override]).run_name for override in INDIFFERENT} == {name}
    names = [check(TRAIN, [override]).run_name for override in DECISIVE]
    assert len({name, *names}) == len(names) + 1
    assert check(TRAIN, ["name=other"]).run_name == name.replace("job-", "other-")
    ensembles = [["train.seeds=2"], ["train.seeds=3"], ["train.seeds=3", "train.combine=max"]]
    assert len({check(TRAIN, overrides).run_name for overrides in ensembles} - {name}) == 3


SMALL = {
    "kind": "train",
    "data": {"uri": "u", "features": {"vector": "x"}},
    "model": {"network": {"widths": [3]}},
}


def test_the_name_of_a_run_is_pinned() -> None:
    """A change here makes runs of before start anew: then IDENTITY goes up, and the changelog tells."""
    made = parse(SMALL)
    assert isinstance(made, TrainJob)
    assert (IDENTITY, made.run_name) == (1, "run-2525e096")


def test_a_field_that_is_added_changes_no_name() -> None:
    class Later(TrainSpec):
        momentum: float = 0.9

    class LaterJob(TrainJob):
        train: Later = Later()

    before, after = TrainJob.model_validate(SMALL), LaterJob.model_validate(SMALL)
    assert after.run_name == before.run_name
    changed = LaterJob.model_validate(SMALL | {"train": {"momentum": 0.8}})
    assert changed.run_name != before.run_name


@pytest.mark.parametrize("override", [[], *([each] for each in DECISIVE + INDIFFERENT)], ids=str)
def test_a_spec_is_what_its_canonical_form_says(check: Any, override: list[str]) -> None:
    job = check(TRAIN, override)
    printed = canonical(job)
    assert TrainJob.model_validate(json.loads(json.dumps(printed))) == job
    assert (
        len(json.dumps(printed)) < len(job.model_dump_json()) / 2
    )  # the control: defaults are gone


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ["train.combine=max"],
            "train.combine: max has no effect with one seed; set train.seeds to 2 or more, or remove it",
        ),
        (
            ["train.seed=2147483647", "train.seeds=2"],
            "train.seeds: 2 members have seeds up to 2147483648, allowed are seeds below 2147483648; "
            "use a smaller train.seed",
        ),
        (["train.seeds=0"], "train.seeds: found 0; input should be greater than or equal to 1"),
        (["train.seeds=101"], "train.seeds: found 101; input should be less than or equal to 100"),
    ],
)
def test_members_that_cannot_be(check: Any, override: list[str], message: str) -> None:
    assert refusal(check, TRAIN, override).endswith(message)


@pytest.mark.parametrize(
    ("schedule", "steps", "factors"),
    [
        (Constant(), 10, {0: 1.0, 9: 1.0}),
        (Constant(warmup_steps=3), 10, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 9: 1.0}),
        (Cosine(), 4, {0: 1.0, 1: 0.5 + math.sqrt(0.125), 2: 0.5, 4: 0.0, 9: 0.0}),
        (Cosine(warmup_steps=1), 5, {0: 0.5, 1: 1.0, 3: 0.5, 5: 0.0}),
        (Cosine(warmup_steps=9), 5, {0: 0.1, 4: 0.5}),
        (OneCycle(peak_at=0.5), 9, {0: 0.04, 2: 0.52, 4: 1.0, 6: 0.5, 8: 0.0, 9: 0.0}),
        (OneCycle(), 11, {0: 0.04, 3: 1.0, 10: 0.0}),
        (OneCycle(), 1, {0: 0.04}),
    ],
)
def test_schedule(schedule: Any, steps: int, factors: dict[int, float]) -> None:
    found = {step: schedule.factor(step, steps) for step in factors}
    assert found == pytest.approx(factors, abs=1e-12)


@pytest.mark.parametrize(
    ("word", "answer"), [("epoch", ", did you mean 'epochs'?"), ("xyz", "."), ("", ".")]
)
def test_nearest(word: str, answer: str) -> None:
    assert nearest(word, ["epochs", "seed"]) == answer


@pytest.mark.parametrize("preset", ["anomoly", "desnoising", "[anomaly]", "3", "true", "{a: 1}"])
def test_a_preset_that_is_none_hides_no_mistake_and_makes_none(check: Any, preset: str) -> None:
    """What it meant to bring is not missing; everything else is told."""
    text = TRAIN.partition("model:")[0].replace("/rows", "/rows\n  missing: men")
    printed = refusal(
        check, f"{text}model: {{preset: {preset}, loss: {{kind: msee}}}}\n"
    ).splitlines()
    assert printed[0] == "job.yaml: 3 mistakes"
    assert "data.missing: found 'men', did you mean 'mean'?" in printed[1]
    assert ": model.preset: found " in printed[2]
    assert ("did you mean 'anomaly'?" in printed[2]) == (preset in ("anomoly", "[anomaly]"))
    assert "model.loss: found kind 'msee', did you mean 'mse'?" in printed[3]


def test_without_a_preset_the_network_is_missing(check: Any) -> None:
    text = TRAIN.partition("model:")[0]
    missing = "model.network: required field is missing"
    assert missing in refusal(check, f"{text}model: {{loss: {{kind: mse}}}}\n")
    assert missing in refusal(check, f"{text}model: {{preset: denoising}}\n")
