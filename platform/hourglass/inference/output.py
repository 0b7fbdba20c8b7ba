"""The folder that scores go to: what is committed there, and what may take its place."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

from hourglass import storage
from hourglass.data.manifest import Manifest, describe
from hourglass.errors import DataError
from hourglass.inference import parts
from hourglass.inference.parts import Options

COMMIT = "_COMMIT.json"
FRESH = "_fresh"
"""Where --fresh writes what is to replace scores that are there; readers of Parquet skip its name."""
LOCK = ".lock"


@dataclass(frozen=True)
class Scored:
    """A committed output: totals, and how many parts this run wrote."""

    uri: str
    rows: int
    dropped: int
    anomalies: int
    mse: float
    range_mse: float
    threshold: float
    parts: int
    written: int


def take_its_place(output: str) -> None:
    """Put what stands whole aside in the place of what is there; cut short, it can be done again."""
    aside = storage.join(output, FRESH)
    commit = storage.read(storage.join(aside, COMMIT))
    waiting = [name for name in storage.names(aside) if name != COMMIT]
    moved = set(json.loads(commit)["parts"]) - set(waiting)
    clear(output, but=moved)
    for name in waiting:
        storage.move(storage.join(aside, name), storage.join(output, name))
    storage.write(storage.join(output, COMMIT), commit)
    storage.remove(aside)


def committed(output: str, options: Options, manifest: Manifest) -> Scored | None:
    """The output that the same job committed. Raises DataError when another job's is there."""
    uri = storage.join(output, COMMIT)
    if not storage.exists(uri):
        return None
    try:
        record = json.loads(storage.read(uri))
        same = record["options"] == json.loads(json.dumps(asdict(options)))
        same = same and record["input"] == describe(manifest)
        committed = Scored(**{**record["scored"], "written": 0})
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{uri}: damaged; score again with --fresh") from None
    if not same:
        raise DataError(
            f"{output}: holds scores of model {record['options']['model']} "
            f"{record['options']['digest'][:12]} on other rows or with other options; "
            "choose another output, or replace it with --fresh"
        )
    return committed


def is_ours(name: str) -> bool:
    """True for the name of a commit or a part."""
    return name == COMMIT or parts.NAME.search(name) is not None


def clear(folder: str, but: Collection[str]) -> None:
    """Remove an earlier job's commit, then its other parts, and nothing else."""
    storage.remove(storage.join(folder, COMMIT))
    for name in storage.names(folder):
        if is_ours(name) and name not in but:
            storage.remove(storage.join(folder, name))


def no_strangers(output: str, names: Iterable[str]) -> None:
    """Raise DataError for files that a reader of the folder would take for rows of this job."""
    mine = {*names, COMMIT}
    others = [n for n in storage.names(output) if n not in mine and not n.startswith((".", "_"))]
    if others:
        raise DataError(
            f"{output}: holds '{others[0]}', which is not of this job (another model, other "
            "options or rows?); choose another output, or replace earlier scores with --fresh"
        )


def sweep(output: str) -> None:
    """Remove what a killed writer left half-written: names with a dot in front, never read."""
    for name in storage.names(output):
        if name.startswith(".part-") and name.endswith(".tmp"):
            storage.remove(storage.join(output, name))
