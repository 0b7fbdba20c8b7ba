"""`score --fresh`: earlier scores are there, whole, until the new ones are; the pool is this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass import storage
from hourglass.config.train import ScoreJob
from hourglass.errors import DataError
from hourglass.inference import batch, parts
from hourglass.inference.parts import Tally
from hourglass.inference.predictor import Predictor

SHARDS = 3


@dataclass
class Model:
    path: str
    digest: str
    name: str = "tiny"
    version: str | None = "1"


class Killed(Exception):
    """The command ended here."""


class Scoring:
    """Commands on one output, each of which may end after so many parts."""

    def __init__(self, folder: Path, save: Callable[..., str]) -> None:
        self.old, self.new = (
            Model(str(folder / name), save(folder / name, seed=seed))
            for name, seed in (("old", 0), ("new", 1))
        )
        self.rows, self.output, self.end_after = folder / "rows", folder / "out", SHARDS + 1
        self.rows.mkdir()
        made = np.random.default_rng(0).normal(3.0, 2.0, (SHARDS, 20 * 12)).astype(np.float32)
        for number, values in enumerate(made):
            table = pa.table({"image": pa.FixedSizeListArray.from_arrays(pa.array(values), 12)})
            pq.write_table(table, self.rows / f"{number}.parquet", write_page_checksum=True)

    def __call__(self, model: Model, fresh: bool = False, end_after: int = SHARDS + 1) -> int:
        """How many parts were written."""
        self.end_after = end_after
        job = ScoreJob.model_validate(
            {"kind": "score", "model": "m", "uri": str(self.rows), "output": str(self.output)}
        )
        return batch.score(job, model, self, fresh).written  # type: ignore[arg-type]

    def scoring(self, rows: int, parts: int, done: int) -> None: ...

    def note(self, text: str) -> None: ...

    def scored(self, tally: Tally) -> None:
        self.end_after -= 1
        if self.end_after < 0:
            raise Killed

    def read(self) -> set[str]:
        """The models that a reader of the folder finds the scores of, once they are committed."""
        assert (self.output / batch.COMMIT).exists()
        table = pq.read_table(self.output)
        assert len(table) == 20 * SHARDS
        return set(table["model_digest"].to_pylist())


@pytest.fixture
def score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_artifact: Callable[..., str]
) -> Scoring:
    def pool(
        job: Any, folder: str, options: Any, work: Any, todo: Any, loaded: Any, listener: Any
    ) -> Iterator[tuple[str, Tally]]:
        for index in todo:
            name = work[index].name(options.key)
            uri = storage.join(folder, name)
            yield name, parts.write(uri, work[index], options, Predictor(loaded))

    monkeypatch.setattr(batch, "_pool", pool)
    return Scoring(tmp_path, save_artifact)


def test_scores_of_before_are_whole_until_the_new_ones_are(score: Scoring) -> None:
    assert score(score.old) == SHARDS
    for parts_done in (1, 2):
        with pytest.raises(Killed):
            score(score.new, fresh=True, end_after=parts_done)
        assert score.read() == {score.old.digest}
        assert score(score.old) == 0
    # The same command goes on with the parts that it has: two, and the one that it was killed at.
    assert score(score.new, fresh=True) == 0
    assert score.read() == {score.new.digest}
    assert sorted(p.name for p in score.output.iterdir() if p.name.startswith(("_", "."))) == [
        batch.COMMIT
    ]


def test_the_same_job_is_scored_anew(score: Scoring) -> None:
    score(score.old)
    assert score(score.old, fresh=True) == SHARDS
    assert score.read() == {score.old.digest}


def test_the_same_fresh_command_goes_on_where_nothing_was_to_be_replaced(score: Scoring) -> None:
    with pytest.raises(Killed):
        score(score.new, fresh=True, end_after=1)
    assert score(score.new, fresh=True) == SHARDS - 2  # one, and the one that it was killed at
    assert score.read() == {score.new.digest}


def test_parts_of_another_job_that_was_cut_short_are_not_gone_on_with(score: Scoring) -> None:
    score(score.old)
    with pytest.raises(Killed):
        score(score.new, fresh=True, end_after=1)
    assert score(score.old, fresh=True) == SHARDS
    assert score.read() == {score.old.digest}


@pytest.mark.parametrize("fresh", [False, True])
def test_killed_while_they_change_places_the_next_command_mends_it(
    score: Scoring, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    score(score.old)
    move, moved = storage.move, []

    def killed(uri: str, to: str) -> None:
        moved.append(uri)
        if len(moved) == 2:
            raise Killed
        move(uri, to)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "move", killed)
        with pytest.raises(Killed):
            score(score.new, fresh=True)
    assert not (score.output / batch.COMMIT).exists()
    assert score(score.new, fresh=fresh) == (SHARDS if fresh else 0)
    assert score.read() == {score.new.digest}


def test_another_file_is_told_before_anything_is_scored(score: Scoring) -> None:
    score(score.old)
    (score.output / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds 'notes.txt', which is not of this job"):
        score(score.new, fresh=True)
    (score.output / "notes.txt").unlink()
    assert score.read() == {score.old.digest}
    assert not (score.output / batch.FRESH).exists()


def test_a_second_command_is_told_who_writes(score: Scoring, monkeypatch: Any) -> None:
    seen: list[str] = []

    def scored(self: Scoring, tally: Tally) -> None:
        if not seen:
            seen.append("")
            with pytest.raises(DataError) as caught:
                score(score.new)
            seen[0] = str(caught.value)

    monkeypatch.setattr(Scoring, "scored", scored)
    assert score(score.old) == SHARDS
    assert seen[0].startswith(f"{score.output}: another process writes these scores (pid ")
    assert seen[0].endswith(
        "; run this one when that has ended, or choose another output (--set output=FOLDER)"
    )
