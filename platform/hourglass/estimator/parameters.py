"""The estimator's parameters as a training job, and a job as parameters.

Scikit-learn's parameters are flat and may be NumPy's; a job file's fields are nested and plain.
"""

import glob
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.errors import SpecError
from hourglass.model.dense import Dense
from hourglass.model.spec import WHOLE

KIND = Dense.model_fields["kind"].default
DENSE = tuple(name for name in Dense.model_fields if name != "kind")
"""Fields of the dense network, each a parameter of the estimator."""
DATA = ("constant", "missing", "holdout")
TRAIN = ("epochs", "batch_size", "clip_norm", "early_stop", "seeds", "combine")
WIDTHS = (32,)
"""Of the dense network, where neither the parameters nor the preset say."""


def job_of(
    given: Mapping[str, Any], usual: Mapping[str, Any], vector: str, names: Iterable[str] | None
) -> TrainJob:
    """The parameters `given` as a validated job over the column `vector`, or the columns `names`.

    `usual` are the defaults: a field of the dense network that differs contradicts `network`.
    Raises: SpecError listing every mistake.
    """
    features = {"vector": vector} if names is None else {"columns": _globs(names)}
    tree = {
        "kind": "train",
        "data": {
            "uri": "in memory",
            "features": features,
            **_chosen(scaling=_part(given["scaling"])),
            **{name: given[name] for name in DATA},
        },
        "model": _chosen(
            preset=given["preset"],
            network=_network(given, usual),
            corruption=_part(given["corruption"]),
            code=_part(given["code"]),
            loss=_part(given["loss"]),
            trim=given["trim"],
            scaled_score=given["scaled_score"],
            penalties=_parts(given["penalties"]),
            adversary=given["adversary"],
        ),
        "train": _chosen(
            **{name: given[name] for name in TRAIN},
            optimizer=_optimizer(given),
            schedule=_part(given["schedule"]),
            phases=_parts(given["phases"]),
            seed=_seed(given["random_state"]),
        ),
        "scale": {"accelerator": given["accelerator"]},
        "quantile": given["quantile"],
    }
    job = files.parse(_plain(tree))
    assert isinstance(job, TrainJob)
    return job


def of_job(job: TrainJob) -> dict[str, Any]:
    """The estimator's parameters of a job; the inverse of `job_of`."""
    tree = job.model_dump(mode="json")
    data, model, train = tree["data"], tree["model"], tree["train"]
    chosen = model.pop("network")
    dense = chosen["kind"] == KIND
    network = {name: chosen[name] for name in DENSE} if dense else {"network": chosen}
    return {
        **network,
        **model,
        **{name: data[name] for name in ("scaling", *DATA)},
        **{name: train[name] for name in ("optimizer", "schedule", "phases", *TRAIN)},
        "quantile": job.quantile,
        "accelerator": job.scale.accelerator,
        "random_state": job.train.seed,
    }


def _network(given: Mapping[str, Any], usual: Mapping[str, Any]) -> Any:
    """The dense network of the parameters, or the one given. Raises SpecError for both."""
    if given["network"] is None:
        fields = {name: given[name] for name in DENSE}
        widths = fields["widths"]
        if widths is None and given["preset"] not in WHOLE:
            widths = WIDTHS
        fields["widths"] = [widths] if np.isscalar(widths) else widths
        return _chosen(kind=KIND, **fields)
    both = [name for name in DENSE if given[name] != usual[name]]
    if both:
        raise SpecError(f"{both[0]} is of the dense network, but `network` is given; keep one")
    return given["network"]


def _optimizer(given: Mapping[str, Any]) -> Any:
    optimizer = _part(given["optimizer"])
    if given["lr"] is None:
        return optimizer
    if isinstance(optimizer, dict) and "lr" in optimizer:
        raise SpecError("lr is given twice: as lr and in optimizer; keep one")
    return {**optimizer, "lr": given["lr"]}


def _seed(random_state: Any) -> Any:
    if isinstance(random_state, int | np.integer):
        return random_state
    return check_random_state(random_state).randint(2**31 - 1)


def _globs(names: Iterable[str]) -> list[str]:
    """Globs that match these column names and no others."""
    return [glob.escape(name) for name in names]


def _chosen(**fields: Any) -> dict[str, Any]:
    """The fields that are not None, which leaves the choice to the preset or the default."""
    return {name: value for name, value in fields.items() if value is not None}


def _parts(values: Any) -> Any:
    """A list of parts, or None."""
    if values is None or isinstance(values, str | Mapping):
        return _part(values)  # a mistake, reported as such
    return [_part(value) for value in values]


def _part(value: Any) -> Any:
    """A part by its kind alone, or as it is."""
    return {"kind": value} if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """NumPy's numbers, arrays and other sequences as Python's: parameter grids are full of them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
