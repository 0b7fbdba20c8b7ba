"""Batch scoring on a real cluster: the predictor's bits; each row exactly once, whatever dies."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from hourglass import artifact, storage
from hourglass.cluster.connect import connection
from hourglass.config.files import load_kind
from hourglass.config.train import ScoreJob
from hourglass.data.manifest import Shard
from hourglass.errors import ArtifactError, ClusterError, DataError
from hourglass.inference import batch, parts
from hourglass.inference.parts import Tally
from hourglass.inference.predictor import Predictor
from hourglass.settings import Settings
from hourglass.tracking.registry import resolve

EVERY = ("code", "hash", "score", "reconstruction", "feature_errors")
SHARDS, GROUPS, ROWS = 4, 3, 50
SCORE = [sys.executable, "-m", "hourglass.cli", "score"]


@dataclass
class Model:
    path: str
    digest: str
    name: str = "tiny"
    version: str | None = "3"


class Recorder:
    """A listener that counts."""

    def __init__(self) -> None:
        self.started: tuple[int, int, int] | None = None
        self.parts = 0

    def scoring(self, rows: int, parts: int, done: int) -> None:
        self.started = (rows, parts, done)

    def note(self, text: str) -> None: ...

    def scored(self, tally: Tally) -> None:
        self.parts += 1


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hgb", dir="/tmp"))  # short: Ray makes sockets below
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(home: Path, s3: str) -> Iterator[str]:
    """Its address; started where the S3 of the tests is known, for its workers to know it too."""
    before = dict(os.environ)
    settings = Settings(home=home / "home", temp_dir=str(home / "ray"))
    with connection(cpus=2, settings=settings):
        yield ray.get_runtime_context().gcs_address
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="module")
def model(home: Path, save_artifact: Callable[..., str]) -> Model:
    return Model(str(home / "model"), save_artifact(home / "model"))


def write_shards(folder: Path, *, holes: dict[int, float] | None = None) -> np.ndarray:
    """Shards of row groups of 50 rows with strings, integers and lists beside; returns the rows."""
    made = np.random.default_rng(1).normal(3.0, 2.0, (SHARDS * GROUPS * ROWS, 12))
    rows = made.astype(np.float32)
    for row, value in (holes or {}).items():
        rows[row, 4] = value
    folder.mkdir()
    each = GROUPS * ROWS
    for shard in range(SHARDS):
        part = rows[shard * each : (shard + 1) * each]
        ids = np.arange(shard * each, (shard + 1) * each)
        flat = pa.array(part.reshape(-1))
        table = pa.table(
            {
                "image": pa.FixedSizeListArray.from_arrays(flat, 12),
                "id": ids,
                "word": [f"row {i}" for i in ids],
                "tags": [[int(i), int(i) % 7] for i in ids],
            }
        )
        path = folder / f"s{shard}.parquet"
        pq.write_table(table, path, row_group_size=ROWS, write_page_checksum=True)
    return rows


@pytest.fixture(scope="module")
def shards(home: Path) -> tuple[str, np.ndarray]:
    return str(home / "rows"), write_shards(home / "rows")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hourglass.inference.parts.PART_BYTES", ROWS * 12 * 4)


def job(uri: str, output: Path | str, **changes: Any) -> ScoreJob:
    tree = {"kind": "score", "model": "tiny", "uri": uri, "output": str(output), "workers": 1}
    tree |= {"passthrough": ["id", "word", "tags"], "outputs": list(EVERY)}
    return ScoreJob.model_validate(tree | changes)


def run(a_job: ScoreJob, model: Model, fresh: bool = False) -> batch.Scored:
    return batch.score(a_job, model, Recorder(), fresh)


def read(folder: Path) -> pa.Table:
    """Every row, checksums verified, in the order of the shards: part names sort like them."""
    return pa.concat_tables(
        pq.ParquetFile(path, page_checksum_verification=True).read().replace_schema_metadata()
        for path in sorted(folder.glob("*.parquet"))
    )


def matrix(table: pa.Table, name: str) -> np.ndarray:
    return np.stack(table[name].combine_chunks().to_numpy(zero_copy_only=False))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def scored(
    cluster: str, home: Path, model: Model, shards: tuple[str, np.ndarray]
) -> tuple[Path, batch.Scored]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hourglass.inference.parts.PART_BYTES", ROWS * 12 * 4)
        output = home / "scored"
        return output, run(job(shards[0], output, workers=2), model)


def test_every_bit_is_the_predictors(
    scored: tuple[Path, batch.Scored], model: Model, shards: tuple[str, np.ndarray]
) -> None:
    output, done = scored
    rows = shards[1]
    expected = Predictor.load(model.path).score(rows, reconstruction=True, feature_errors=True)
    table = read(output)
    assert (done.rows, done.dropped, done.parts, done.written) == (600, 0, 12, 12)
    assert table["id"].to_pylist() == list(range(600))
    np.testing.assert_array_equal(matrix(table, "code"), expected.code)
    packed = np.stack([np.frombuffer(b, np.uint8) for b in table["hash"].to_pylist()])
    np.testing.assert_array_equal(packed, expected.hash)
    np.testing.assert_array_equal(table["score"].to_numpy(), expected.score)
    assert table["is_anomaly"].to_pylist() == expected.is_anomaly.tolist()
    np.testing.assert_array_equal(matrix(table, "reconstruction"), expected.reconstruction)
    errors = matrix(table, "feature_errors")
    np.testing.assert_array_equal(errors, expected.feature_errors)
    np.testing.assert_allclose(errors.sum(axis=1), expected.score, rtol=1e-5)
    assert done.anomalies == int(expected.is_anomaly.sum())
    assert done.mse == pytest.approx(float(expected.score.mean()), rel=1e-12)


def test_lineage_and_passthrough(scored: tuple[Path, batch.Scored], model: Model) -> None:
    table = read(scored[0])
    assert table["word"].to_pylist() == [f"row {i}" for i in range(600)]
    assert table["tags"].to_pylist() == [[i, i % 7] for i in range(600)]
    assert table["shard"].to_pylist() == [f"s{i // 150}.parquet" for i in range(600)]
    assert table["row_group"].to_pylist() == [i % 150 // 50 for i in range(600)]
    assert table["row"].to_pylist() == [i % 50 for i in range(600)]
    for column, value in {
        "model": model.name, "model_version": model.version, "model_digest": model.digest
    }.items():  # fmt: skip
        assert set(table[column].to_pylist()) == {value}


def test_the_commit_lists_the_parts(scored: tuple[Path, batch.Scored], model: Model) -> None:
    output, done = scored
    record = json.loads((output / batch.COMMIT).read_text())
    assert sorted(record["parts"]) == sorted(path.name for path in output.glob("*.parquet"))
    assert {path.name for path in output.iterdir()} == {*record["parts"], batch.COMMIT}
    assert record["options"]["digest"] == model.digest
    assert record["scored"]["rows"] == done.rows == record["input"]["rows"]


def test_a_second_run_writes_nothing(
    scored: tuple[Path, batch.Scored], model: Model, shards: tuple[str, np.ndarray]
) -> None:
    before = times(scored[0])
    again = run(job(shards[0], scored[0]), model)
    assert times(scored[0]) == before
    assert again == batch.Scored(**{**vars(scored[1]), "written": 0})


@pytest.mark.parametrize("verify", [True, False], ids=["checked", "control"])
def test_page_checksums_see_a_flipped_bit(
    scored: tuple[Path, batch.Scored], tmp_path: Path, verify: bool
) -> None:
    source = min(scored[0].glob("*.parquet"))
    column = pq.ParquetFile(source).metadata.row_group(0)
    index = [column.column(i).path_in_schema for i in range(column.num_columns)].index("score")
    chunk = column.column(index)
    data = bytearray(source.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 4  # inside the page's values
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(data)
    reader = pq.ParquetFile(damaged, page_checksum_verification=verify)
    if verify:
        with pytest.raises(OSError, match="CRC"):
            reader.read(columns=["score"])
    else:
        assert reader.read(columns=["score"]) != pq.ParquetFile(source).read(columns=["score"])


def test_another_job_on_a_committed_output(
    scored: tuple[Path, batch.Scored],
    model: Model,
    shards: tuple[str, np.ndarray],
    home: Path,
    tmp_path: Path,
    save_artifact: Callable[..., str],
) -> None:
    output = tmp_path / "scored"
    shutil.copytree(scored[0], output)
    other = Model(str(tmp_path / "other"), save_artifact(tmp_path / "other", seed=1))
    write_shards(tmp_path / "more", holes={3: 99.0})
    refused = (
        f"{output}: holds scores of model tiny {model.digest[:12]} on other rows or with other "
        "options; choose another output, or replace it with --fresh"
    )
    before = times(output)
    for a_job, a_model in (
        (job(shards[0], output), other),
        (job(shards[0], output, threshold=0.25), model),
        (job(str(tmp_path / "more"), output), model),
    ):
        with pytest.raises(DataError) as caught:
            run(a_job, a_model)
        assert str(caught.value) == refused
    assert times(output) == before
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds 'notes.txt', which is not of this job"):
        run(job(shards[0], output), other, fresh=True)
    assert (output / "notes.txt").read_text() == "mine"
    (output / "notes.txt").unlink()
    assert run(job(shards[0], output), other, fresh=True).written == 12
    assert set(read(output)["model_digest"].to_pylist()) == {other.digest}


def test_parts_of_an_unfinished_job_do_not_mix(
    scored: tuple[Path, batch.Scored],
    model: Model,
    shards: tuple[str, np.ndarray],
    tmp_path: Path,
) -> None:
    output = tmp_path / "scored"
    shutil.copytree(scored[0], output)
    (output / batch.COMMIT).unlink()
    with pytest.raises(DataError, match="which is not of this job"):
        run(job(shards[0], output, outputs=["score"]), model)
    assert run(job(shards[0], output), model).written == 0


def test_missing_cells(cluster: str, command: "Command", model: Model, tmp_path: Path) -> None:
    write_shards(tmp_path / "damaged", holes={160: np.nan})  # of two, either may be met first
    damaged, refused = str(tmp_path / "damaged"), tmp_path / "refused"
    process = command.start(refused, "--set", f"uri={damaged}")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert err.startswith(
        f"error: {damaged}/s1.parquet: row group 0, row 10, column 'image[4]': found nan"
    )
    assert err.count("\n") == 1  # the message and nothing else, of Ray's for one
    assert "Traceback" not in out
    assert not list(refused.glob(".part-*"))
    assert not (refused / batch.COMMIT).exists()
    rows = write_shards(tmp_path / "rows", holes={160: np.nan, 310: np.inf})
    uri = str(tmp_path / "rows")
    done = run(job(uri, tmp_path / "dropped", missing="drop_row"), model)
    assert (done.rows, done.dropped) == (598, 2)
    table = read(tmp_path / "dropped")
    assert table["id"].to_pylist() == [i for i in range(600) if i not in (160, 310)]
    assert table["row"].to_pylist() == [i % 50 for i in range(600) if i not in (160, 310)]
    filled = run(job(uri, tmp_path / "filled", missing="mean"), model)
    assert (filled.rows, filled.dropped) == (600, 0)
    predictor = Predictor.load(model.path)
    rows[[160, 310], 4] = float(predictor.module.preprocessing.mean_C[4])
    np.testing.assert_array_equal(matrix(read(tmp_path / "filled"), "code"), predictor.encode(rows))


def test_output_in_s3(
    scored: tuple[Path, batch.Scored], model: Model, shards: tuple[str, np.ndarray], s3: str
) -> None:
    output = f"{s3}/scores"
    storage.write(f"{output}/.part-old.tmp", b"half")
    done = run(job(shards[0], output), model)
    assert (done.rows, done.written) == (600, 12)
    assert storage.names(output) == sorted(path.name for path in scored[0].iterdir())
    parts = sorted(scored[0].glob("*.parquet"))
    for path in parts:
        assert storage.read(f"{output}/{path.name}") == path.read_bytes()
    assert run(job(shards[0], output), model).written == 0
    storage.remove(f"{output}/{batch.COMMIT}")
    storage.remove(f"{output}/{parts[0].name}")
    assert run(job(shards[0], output), model).written == 1
    assert run(job(shards[0], output), model, fresh=True).written == 12


def test_refusals(shards: tuple[str, np.ndarray], model: Model, tmp_path: Path) -> None:
    inside = Path(shards[0]) / "scores"
    with pytest.raises(DataError) as caught:
        run(job(shards[0], inside), model)
    assert str(caught.value) == (
        f"output: {inside} lies in {shards[0]}, whose files are the rows to score; "
        "choose a folder elsewhere"
    )
    with pytest.raises(DataError, match="no column 'wrod', did you mean 'word'"):
        run(job(shards[0], tmp_path / "out", passthrough=["wrod"]), model)


# RAY-10: killed at random points, then run to the end.


@pytest.fixture(scope="module")
def big(home: Path) -> Path:
    """48 parts of a little work each, so that a kill falls between and inside them."""
    rng = np.random.default_rng(2)
    folder = home / "big"
    folder.mkdir()
    for shard in range(48):
        values = rng.normal(3.0, 2.0, 12 * 6000).astype(np.float32)
        ids = np.arange(shard * 6000, (shard + 1) * 6000)
        table = pa.table(
            {"image": pa.FixedSizeListArray.from_arrays(pa.array(values), 12), "id": ids}
        )
        pq.write_table(table, folder / f"b{shard:02d}.parquet", write_page_checksum=True)
    return folder


@dataclass
class Command:
    """`hourglass score` in a process of its own."""

    home: Path
    file: Path

    def start(
        self, output: Path, *more: str, address: str | None = None
    ) -> "subprocess.Popen[str]":
        """On the cluster at `address`, or with one of its own."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "HOURGLASS_", "MLFLOW_"))
        }
        environment |= {"HOURGLASS_HOME": str(self.home / "home"), "OMP_NUM_THREADS": "1"}
        environment |= {"HOURGLASS_TEMP_DIR": str(self.home / "c")}
        environment |= {"HOURGLASS_ADDRESS": address} if address else {}
        return subprocess.Popen(
            [*SCORE, str(self.file), "--set", f"output={output}", *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
        )


@pytest.fixture(scope="module")
def command(home: Path, model: Model, big: Path) -> Command:
    file = home / "score.yaml"
    file.write_text(
        f"kind: score\nmodel: {model.path}\nuri: {big}\noutput: x\npassthrough: [id]\nworkers: 2\n"
    )
    return Command(home, file)


@pytest.fixture(scope="module")
def undisturbed(command: Command, home: Path) -> Path:
    process = command.start(Path("undisturbed"))  # relative: to the caller's folder
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    own = ("model ", "rows ", "288000 rows", "anomalies ", "mse ", "output ")
    assert [line for line in (out + err).splitlines() if not line.startswith(own)] == []
    return home / "undisturbed"


def part_count(output: Path) -> int:
    return len(list(output.glob("*.parquet"))) if output.exists() else 0


def wait_for(process: "subprocess.Popen[str]", output: Path, parts: int) -> None:
    limit = time.monotonic() + 60
    while part_count(output) < parts and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)


def pool() -> list[psutil.Process]:
    """The processes that score, of whatever driver and cluster that this process started."""
    family = psutil.Process().children(recursive=True)
    return [child for child in family if child.name().startswith("ray::MapWorker")]


def kill_an_actor(chance: random.Random) -> None:
    """SIGKILL to one process of the pool."""
    alive = pool()
    assert alive, "no actor to kill"
    chance.choice(alive).kill()


class Killer(Recorder):
    """Kills an actor of this process each time that so many parts are there."""

    def __init__(self, after: set[int], chance: random.Random) -> None:
        super().__init__()
        self.after, self.chance, self.killed = after, chance, 0

    def scored(self, tally: Tally) -> None:
        super().scored(tally)
        if self.parts in self.after:
            time.sleep(self.chance.uniform(0.0, 0.05))
            kill_an_actor(self.chance)
            self.killed += 1


def score_here(command: Command, output: Path, listener: Recorder) -> batch.Scored:
    """The same job, by the driver's function in this process."""
    a_job = load_kind(ScoreJob, command.file, [f"output={output}"])
    return batch.score(a_job, resolve(a_job.model, Settings(home=command.home / "home")), listener)


def kill_the_driver(
    command: Command, output: Path, chance: random.Random, actor: bool, address: str | None
) -> None:
    """Start the command, kill an actor first if so asked, then the driver, at random points."""
    process = command.start(output, address=address)
    wait_for(process, output, part_count(output) + chance.randint(1, 3))
    time.sleep(chance.uniform(0.0, 0.05))
    if actor:
        kill_an_actor(chance)
        wait_for(process, output, part_count(output) + 1)
    family = [*psutil.Process(process.pid).children(recursive=True), *pool()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert part_count(output) < 40, "killed too late to test anything"
    assert not (output / batch.COMMIT).exists()
    _, alive = psutil.wait_procs(family, timeout=20)
    for left in alive:
        left.kill()


def test_ray_10(cluster: str, command: Command, undisturbed: Path, tmp_path: Path) -> None:
    """The driver three times, once right after an actor, and two more actors."""
    chance, output, found = random.Random(10), tmp_path / "scored", 0
    for actor, address in ((False, None), (True, cluster), (False, cluster)):
        kill_the_driver(command, output, chance, actor, address)
        assert part_count(output) > found
        found = part_count(output)
    killer = Killer({found + chance.randint(1, 6), found + chance.randint(7, 12)}, chance)
    done = score_here(command, output, killer)
    assert (killer.killed, killer.parts, done.written) == (2, 48, 48 - found)
    assert {path.name for path in output.iterdir()} == {p.name for p in undisturbed.iterdir()}
    table = read(output)
    assert table["id"].to_pylist() == list(range(288_000))
    assert table.equals(read(undisturbed))
    before = times(output)
    assert score_here(command, output, Recorder()).written == 0
    assert times(output) == before


def test_exactly_once_sees_a_row_too_many(undisturbed: Path, tmp_path: Path) -> None:
    """Control: what the test above would see if parts had no fixed names, or were half-written."""
    shutil.copytree(undisturbed, tmp_path / "twice")
    part = min((tmp_path / "twice").glob("*.parquet"))
    shutil.copy(part, part.with_name("again.parquet"))
    ids = read(tmp_path / "twice")["id"]
    assert len(ids) > pc.count_distinct(ids).as_py() == 288_000
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(pa.ArrowInvalid):
        read(tmp_path / "twice")


def test_a_damaged_model_is_refused(
    cluster: str, model: Model, shards: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(model.path, tmp_path / "model")
    weights = tmp_path / "model" / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    digest = Predictor.load(model.path).artifact.digest
    with pytest.raises(ArtifactError, match="the file was changed"):
        run(job(shards[0], tmp_path / "out"), Model(str(tmp_path / "model"), digest))


def test_a_shard_that_ends_its_scorer_is_named(
    cluster: str,
    model: Model,
    shards: tuple[str, np.ndarray],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second shard does what a native crash does, to a scorer and to whoever reads it again."""
    here, items = os.getpid(), parts.items

    def deadly(shard: Shard) -> None:
        if os.getpid() != here and shard.path.endswith("s1.parquet"):
            os.abort()

    class Deadly(parts.Item):
        def name(self, key: str) -> str:
            deadly(self.shard)
            return super().name(key)

    monkeypatch.setattr(
        parts, "items", lambda *of: [Deadly(item.shard, item.groups) for item in items(*of)]
    )
    monkeypatch.setattr(batch, "RETRIES", 0)
    a_job = job(shards[0], home / "deadly")
    with pytest.raises(ClusterError, match=r"^scoring failed: .* the same command finishes it$"):
        run(a_job, model)  # the control: read again, its shards end nobody
    monkeypatch.setattr(
        batch, "_read_through", lambda shards, _, __, number: deadly(shards[number])
    )
    with pytest.raises(DataError) as caught:
        run(a_job, model)
    assert str(caught.value) == (
        f"reading failed: the process that read {shards[0]}/s1.parquet died; is it damaged?"
    )
