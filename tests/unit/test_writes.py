"""Every file that is written: whatever a write meets, the old thing is there whole, or the new one.

Each change to the file system is refused in turn (a full disk, no permission), and is the last thing
that a process did before it was killed.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from pydantic import TypeAdapter

from hourglass import artifact, check, cli, report, storage
from hourglass.cluster import nodes, tokens
from hourglass.cluster.nodes import Node
from hourglass.config.files import parse
from hourglass.config.train import ScoreJob
from hourglass.data import demo
from hourglass.data.manifest import scan
from hourglass.errors import ArtifactError, DataError, HourglassError, WriteError
from hourglass.inference import batch, parts
from hourglass.inference.output import take_its_place
from hourglass.inference.parts import Item, Options
from hourglass.inference.predictor import Predictor
from hourglass.settings import Settings
from hourglass.tracking import registry
from hourglass.tracking.backend import Version
from hourglass.tracking.mlflow import answering
from hourglass.tracking.outbox import Outbox
from hourglass.tuning import leaderboard, plots, sweep
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.store import Stopped

Tree = dict[str, bytes]
CHANGES = ("fsync", "replace", "rename", "link", "mkdir", "unlink", "remove", "rmdir", "write")
KILLED = 9


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made is small, and made in a moment: only how it is written is looked at."""
    monkeypatch.setattr(demo, "SHARDS", 2)
    monkeypatch.setattr(demo, "SERIES_ROWS", 40)
    monkeypatch.setattr(demo, "STRANGE_ROWS", 4)
    selection = SimpleNamespace(sample=SimpleNamespace(places=[1]), notes=())
    monkeypatch.setattr(report, "select", lambda *_: selection)
    monkeypatch.setattr(report, "evaluate", lambda *_: None)
    monkeypatch.setattr(report, "_sections", lambda _: [])
    schema = {"type": "object", "properties": {}}
    monkeypatch.setattr(TypeAdapter, "json_schema", lambda *_, **__: schema)
    monkeypatch.setattr(plots, "page", lambda board, *_: board.to_json())


@contextlib.contextmanager
def failing(at: int, how: Callable[[], None]) -> Iterator[list[str]]:
    """The `at`-th change to the file system is not made: `how` happens. Yields those so far."""
    made: list[str] = []
    real_open, real_os_open, before = (
        io.open,
        os.open,
        {name: getattr(os, name) for name in CHANGES},
    )

    def change(name: str) -> None:
        made.append(name)
        if len(made) == at:
            how()

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            change(f"open {mode}")
        return real_open(file, mode, *args, **kwargs)

    def os_opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            change("os.open")
        return real_os_open(path, flags, *args, **kwargs)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            change(name)
            return real(*args, **kwargs)

        return call

    try:
        for name, real in before.items():
            setattr(os, name, watched(name, real))
        os.open, io.open, storage.open = os_opened, opened, opened  # type: ignore[assignment,attr-defined]
        yield made
    finally:
        for name, real in before.items():
            setattr(os, name, real)
        os.open, io.open = real_os_open, real_open
        del storage.open  # type: ignore[attr-defined]


def refuse(number: int) -> Callable[[], None]:
    def how() -> None:
        raise OSError(number, os.strerror(number))

    return how


def killed(at: int, action: Callable[[], Any]) -> int:
    """Run `action` in a process that dies instead of its `at`-th change; how it ended."""
    child = os.fork()
    if child == 0:
        try:
            with failing(at, lambda: os._exit(KILLED)):
                action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hourglass(*words: Any) -> Callable[[Path], Any]:
    """A command, run in this process as a shell would."""

    def act(folder: Path) -> None:
        argv, sys.argv = sys.argv, ["hourglass", *(str(w).format(folder=folder) for w in words)]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.argv = argv

    return act


def shards(folder: Path, first: float = 0.0) -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (40, 12)).astype(np.float32)
    rows[0, 0] = first
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 12)
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": vectors}), folder / "a.parquet", write_page_checksum=True)


def visible(folder: Path) -> Tree:
    """Every file below `folder`, but for those that are half-written, which nobody reads."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {str(path.relative_to(folder)): path for path in files}
    return {n: p.read_bytes() for n, p in sorted(named.items()) if not half(n)}


def half(name: str) -> bool:
    return any(p.startswith(".") and p.endswith((".tmp", ".lock")) for p in name.split("/"))


@dataclass(frozen=True)
class Write:
    """Something that is written: how, over what, and what is then there.

    `old` makes what is there before; `seen` is what is compared, whole: a list has one item for each
    thing that is whole by itself.
    """

    act: Callable[[Path], Any]
    old: Callable[[Path], Any] = lambda folder: None
    seen: Callable[[Path], Sequence[Any]] = lambda folder: [visible(folder / "out")]
    command: bool = True
    uses: Callable[[Path], Any] = field(default=lambda folder: None)


def model(folder: Path) -> None:
    shutil.copytree(folder.parent / "model", folder / "model", dirs_exist_ok=True)


def rows_and_model(folder: Path) -> None:
    model(folder)
    shards(folder / "rows")


def older(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / name).write_text("older")

    return make


def older_schema(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "train.json").write_text('{"type": "object", "properties": {"x": {}}}')


def older_manifest(folder: Path) -> None:
    shards(folder / "rows", first=9.0)
    hourglass("data", "manifest", "{folder}/rows", "--out", "{folder}/out/m.json")(folder)
    shards(folder / "rows")


def each_file(folder: Path) -> Sequence[Any]:
    """Each file of a set is whole by itself; None before it is there."""
    there = visible(folder / "out")
    return [there.get(name) for name in sorted(SETS)]


SETS = {
    *(f"{kind}.json" for kind in ("train", "score", "tune", "serve")),
    *(f"leaderboard.{kind}" for kind in ("json", "csv", "parquet")),
    "plots.html",
    "stopped.json",
    *(f"part-0000{number}.parquet" for number in range(4)),
}


def board(error: float) -> leaderboard.Leaderboard:
    entries = [Entry(trial="t", status="finished", values={"a": error}, holdout_mse=error)]
    return leaderboard.ranked("s", "holdout_mse", entries)


def save_sweep(folder: Path, error: float = 1.0) -> None:
    out = str(folder / "out")
    board(error).save(out)
    plots.save(out, board(error), {"t": 3})
    Stopped("digest", [{"epoch": 1.0, "loss": error}], 1.0).save(out)


def save_model(folder: Path) -> None:
    """The estimator's `save` and a run's: over another model, or into a new folder."""
    loaded = artifact.load(str(folder.parent / "model"))
    golden = artifact.parse_tensors(
        "g", (folder.parent / "model" / artifact.REFERENCE).read_bytes()
    )
    artifact.save(
        str(folder / "out"),
        module=loaded.module,
        features=loaded.manifest.features,
        calibration=loaded.manifest.calibration,
        reference_rows=golden["rows"],
        name="saved",
        metrics={},
        job={},
        provenance={},
    )


def older_model(folder: Path) -> None:
    shutil.copytree(folder.parent / "other", folder / "out")


def loads(folder: Path) -> Sequence[Any]:
    """The digest of the artifact that loads, verified; None where none is."""
    if not (folder / "out" / artifact.MANIFEST).exists():
        return [None]
    return [artifact.load(str(folder / "out")).digest]


def score_part(folder: Path) -> None:
    manifest, _ = scan(str(folder / "rows"))
    options = Options(("code", "score"), (), 0.5, "error", "m", "1", "d")
    item = parts.items(manifest, 48)[0]
    predictor = Predictor.load(str(folder / "model"))
    parts.write(
        str(folder / "out" / Item(manifest.shards[0], (0,)).name("k")), item, options, predictor
    )


def resolved(folder: Path) -> None:
    """A registered model's copy on this machine; what downloads it is MLflow's."""
    digest = artifact.load(str(folder / "model")).digest
    version = Version("m", "1", digest, (), {}, None, 0)

    class Downloads:
        def download(self, version: Any, into: Path) -> None:
            for name in (artifact.MANIFEST, artifact.WEIGHTS, artifact.REFERENCE):
                with open(into / name, "wb") as file:
                    file.write((folder / "model" / name).read_bytes())

    tracker: Any = Downloads()
    with answering(Settings(home=folder / "out")):
        registry.fetch(Settings(home=folder / "out"), tracker, version)


def copies(folder: Path) -> Sequence[Any]:
    found = (folder / "out" / "models").glob("[0-9a-f]*")
    return [[visible(copy) for copy in found]]


def record_head(folder: Path) -> None:
    head = Node(address="a", dashboard="d", secure=True, daemons=())
    record = nodes._record(Settings(home=folder / "out"))
    storage.write(str(record), head.model_dump_json().encode())


def token(folder: Path) -> None:
    tokens.write_token(folder / "out" / "t", "new" * 9)


def events(folder: Path) -> Sequence[Any]:
    """What the spool has: each event is whole by itself."""
    return [[event["n"] for _, event in Outbox(folder / "out", "run").pending()]]


def append(folder: Path, number: int = 1) -> None:
    Outbox(folder / "out", "run").append("epoch", n=number)


def scored(folder: Path, word: str = "old", output: str = "out") -> None:
    """Scores of two parts."""
    names = [
        f"s-00000-{word * 5 + '0':0<16}.parquet".replace("o", "0").replace("l", "1") for _ in "1"
    ]
    names += ["s-00001-0000000000000000.parquet"]  # has the same name in both
    (folder / output).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / output / name).write_text(word)
    record = {"parts": names, "scored": word}
    (folder / output / batch.COMMIT).write_text(json.dumps(record))


def replace_scores(folder: Path) -> None:
    take_its_place(str(folder / "out"))


def waiting_scores(folder: Path) -> None:
    scored(folder)
    scored(folder, "new", f"out/{batch.FRESH}")


def readable(folder: Path) -> Sequence[Any]:
    """What a reader of the folder has that waits for the commit; else what is whole aside."""
    out = folder / "out"
    if not (out / batch.COMMIT).exists():
        out = out / batch.FRESH
        # What was moved already is in its place, whole.
        there = {p.name: p.read_text() for p in [*out.parent.glob("*.parquet"), *out.iterdir()]}
    else:
        there = {p.name: p.read_text() for p in out.iterdir() if p.is_file()}
    printed = json.loads(there[batch.COMMIT])
    return [(printed["scored"], [there.get(name) for name in printed["parts"]])]


WRITES: dict[str, Write] = {
    "data manifest": Write(
        hourglass("data", "manifest", "{folder}/rows", "--out", "{folder}/out/m.json"),
        older_manifest,
    ),
    "data manifest, new": Write(
        hourglass("data", "manifest", "{folder}/rows", "--out", "{folder}/out/m.json"),
        uses=lambda folder: shards(folder / "rows"),
    ),
    "data make": Write(hourglass("data", "make", "lorenz", "{folder}/out")),
    "data make, a part is there": Write(
        hourglass("data", "make", "digits", "{folder}/out"),
        lambda folder: (
            hourglass("data", "make", "digits", "{folder}/out")(folder),
            (folder / "out" / "part-00001.parquet").unlink(),
        ),
        each_file,
    ),
    "schema": Write(hourglass("schema", "{folder}/out"), older_schema, each_file),
    "report": Write(
        hourglass("report", "{folder}/model", "--out", "{folder}/out/r.html"),
        older("r.html"),
        uses=model,
    ),
    "plot-model": Write(
        hourglass("plot-model", "{folder}/model", "--out", "{folder}/out/n.svg"),
        older("n.svg"),
        uses=model,
    ),
    "encode": Write(
        hourglass("encode", "{folder}/model", "{folder}/rows", "--out", "{folder}/out/c.parquet"),
        uses=rows_and_model,
    ),
    "a model, over another": Write(save_model, older_model, loads, command=False),
    "a model, new": Write(save_model, seen=loads, command=False),
    "a sweep's files": Write(
        save_sweep, lambda folder: save_sweep(folder, 2.0), each_file, command=False
    ),
    "a part of scores": Write(score_part, uses=rows_and_model, command=False),
    "scores, over others": Write(replace_scores, waiting_scores, readable, command=False),
    "a copy of a registered model": Write(resolved, seen=copies, uses=model, command=False),
    "the record of a head": Write(record_head, command=False),
    "a token": Write(token, lambda folder: (folder / "out").mkdir(), command=False),
    "an event": Write(append, lambda folder: append(folder, 0), events, command=False),
}


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_artifact: Callable[..., str]
) -> Path:
    """Two models, and room for folders."""
    small(monkeypatch)
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    save_artifact(tmp_path / "model")
    save_artifact(tmp_path / "other", seed=1)
    return tmp_path


def prepared(write: Write, folder: Path) -> Path:
    """A folder with what the write needs, and what is there before it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write.uses(folder)
    write.old(folder)
    return folder


def whole(found: Sequence[Any], old: Sequence[Any], new: Sequence[Any]) -> bool:
    return all(thing in (was, is_) for thing, was, is_ in zip(found, old, new, strict=True))


@pytest.mark.parametrize("name", WRITES)
def test_the_old_whole_or_the_new_whole(name: str, place: Path, capsys: Any) -> None:
    write, folder = WRITES[name], place / "f"
    old = write.seen(prepared(write, folder))
    with failing(0, lambda: None) as made:
        write.act(folder)
    new = write.seen(folder)
    assert new != old
    assert len(made) >= 2, made
    for at in range(1, len(made) + 1):
        for number in (errno.ENOSPC, errno.EACCES):
            prepared(write, folder)
            capsys.readouterr()
            try:
                with failing(at, refuse(number)):
                    write.act(folder)
            except SystemExit as end:
                assert end.code == 1, made[at - 1]
                printed = capsys.readouterr()
                assert printed.err.startswith("error: "), printed.err
                assert printed.err.count("\n") == 1
                assert os.strerror(number) in printed.err
                assert str(folder) in printed.err
            except OSError as error:
                assert not write.command
                assert os.strerror(number) in str(error)
                assert getattr(error, "exit_code", 1) == 1
            assert whole(write.seen(folder), old, new), f"{made[at - 1]}, {os.strerror(number)}"
        prepared(write, folder)
        assert killed(at, lambda: write.act(folder)) == KILLED
        assert whole(write.seen(folder), old, new), f"killed at {made[at - 1]}, number {at}"
        if write.seen(folder) != new:
            write.act(folder)  # the same again completes it
        assert write.seen(folder) == new
    prepared(write, folder)
    assert killed(len(made) + 1, lambda: write.act(folder)) == 0  # those were all


def truncating(uri: str, content: bytes) -> None:
    """What a write is without care."""
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    with storage.open(uri, "wb") as file:  # type: ignore[attr-defined]
        for piece in (content[:10], content[10:]):
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())


@pytest.mark.parametrize(
    ("name", "owner", "careless"),
    [
        ("plot-model", "storage.write", truncating),
        ("data make", "storage.new_folder", contextlib.nullcontext),
        ("a model, over another", "artifact.folder._waiting", lambda file, sha256: file),
    ],
)
def test_without_its_protection_something_is_half_there(
    name: str, owner: str, careless: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a kill, at one change at least, leaves neither the old thing nor the new one."""
    write, folder = WRITES[name], place / "f"
    monkeypatch.setattr(f"hourglass.{owner}", careless)
    old = write.seen(prepared(write, folder))
    with failing(0, lambda: None) as made:
        write.act(folder)
    new = write.seen(folder)

    def is_half(at: int) -> bool:
        prepared(write, folder)
        assert killed(at, lambda: write.act(folder)) == KILLED
        try:
            return not whole(write.seen(folder), old, new)
        except ArtifactError:
            return True

    assert any(map(is_half, range(1, len(made) + 1)))


class Killed(Exception):
    """A process ended here."""


@contextlib.contextmanager
def failing_s3(at: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The `at`-th change to S3 is not made: `error` is raised. Yields those so far."""
    made: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def watched(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method.startswith(("put", "delete", "copy", "upload", "create", "complete")):
            made.append(method)
            if len(made) == at:
                raise error
        return await call(self, method, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", watched)
        yield made


@dataclass(frozen=True)
class InS3:
    """The same, in a bucket: what was there, what is done, and what is then seen."""

    old: Callable[[str, Path], Any]
    act: Callable[[str, Path], Any]
    seen: Callable[[str], Any]


def put(uri: str, folder: Path) -> None:
    for name, content in visible(folder).items():
        storage.write(storage.join(uri, name), content)


def put_scores(uri: str, place: Path) -> None:
    shutil.rmtree(place / "s", ignore_errors=True)
    waiting_scores(place / "s")
    put(uri, place / "s" / "out")


def readable_in_s3(uri: str) -> Any:
    folder = uri if storage.exists(f"{uri}/{batch.COMMIT}") else f"{uri}/{batch.FRESH}"
    printed = json.loads(storage.read(f"{folder}/{batch.COMMIT}"))
    there = {name: f"{uri}/{name}" for name in storage.names(uri)}
    there |= {name: f"{folder}/{name}" for name in storage.names(folder)}
    return printed["scored"], [storage.read(there[name]) for name in printed["parts"]]


def replace_model(uri: str, place: Path) -> None:
    loaded = artifact.load(str(place / "model"))
    golden = artifact.parse_tensors("g", (place / "model" / artifact.REFERENCE).read_bytes())[
        "rows"
    ]
    of = loaded.manifest
    artifact.save(
        uri, module=loaded.module, features=of.features, calibration=of.calibration,
        reference_rows=golden, name="saved", metrics={}, job={}, provenance={},
    )  # fmt: skip


IN_S3 = {
    "a model": InS3(
        lambda uri, place: put(uri, place / "other"),
        replace_model,
        lambda uri: artifact.load(uri).digest,
    ),
    "scores": InS3(put_scores, lambda uri, _: take_its_place(uri), readable_in_s3),
}


@pytest.mark.parametrize("name", IN_S3)
def test_the_old_whole_or_the_new_whole_in_s3(
    name: str, place: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, uri = IN_S3[name], f"{s3}/{name.replace(' ', '-')}"
    write.old(uri, place)
    old = write.seen(uri)
    with failing_s3(0, Killed(), monkeypatch) as made:
        write.act(uri, place)
    new, names = write.seen(uri), storage.names(uri)
    assert new != old
    for at in range(1, len(made) + 1):
        for error in (Killed(), PermissionError("Access Denied"))[: 1 + (at == 1)]:
            storage.remove(uri)
            write.old(uri, place)
            try:
                with failing_s3(at, error, monkeypatch):
                    write.act(uri, place)
            except Killed:
                pass
            except WriteError as refused:
                assert str(refused).startswith(uri)
                assert str(refused).endswith(
                    ": cannot be written (Access Denied); existing content is kept"
                )
            assert write.seen(uri) in (old, new), made[at - 1]
            if (write.seen(uri), storage.names(uri)) != (new, names):
                write.act(uri, place)
            assert (write.seen(uri), storage.names(uri)) == (new, names)


def trials_of(folder: str, trial: str, finished: bool) -> None:
    uri = f"{folder}/trials/{trial}"
    storage.write(f"{uri}/artifact/manifest.json" if finished else f"{uri}/checkpoints/c", b"{}")


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_fresh_sweep_keeps_the_trials_of_before_until_it_has_its_own(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bucket = request.getfixturevalue("s3") if where == "s3" else str(tmp_path)
    folder = f"{bucket}/sweep"

    def there(name: str) -> list[str]:
        return storage.names(f"{folder}/{name}")

    sweep._set_aside(folder)  # there is nothing yet
    sweep._settle(folder, ended=True)
    assert there("") == []
    trials_of(folder, "a", finished=True)
    trials_of(folder, "b", finished=False)
    sweep._set_aside(folder)
    assert (there("before"), there("trials")) == (["a", "b"], [])
    sweep._settle(folder, ended=False)  # it failed before a trial began
    assert (there("before"), there("trials")) == ([], ["a", "b"])
    for _ in range(2):  # killed, and begun anew once more
        sweep._set_aside(folder)
        trials_of(folder, "c", finished=False)
    sweep._settle(folder, ended=True)  # each of its trials failed
    assert (there("before"), there("trials")) == ([], ["a", "b"])
    sweep._set_aside(folder)
    trials_of(folder, "d", finished=True)
    sweep._settle(folder, ended=False)  # it is gone on with
    assert (there("before"), there("trials")) == (["a", "b"], ["d"])
    sweep._settle(folder, ended=True)
    assert (there("before"), there("trials")) == ([], ["d"])


def test_a_full_disk_of_a_process_that_scores_comes_back_as_such(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As words: the row that says so crosses from one process to another."""
    shards(place / "rows")
    manifest, _ = scan(str(place / "rows"))
    options = Options(("score",), (), 0.5, "error", "m", "1", "d")
    work, loaded = parts.items(manifest, 48), artifact.load(str(place / "model"))
    scorer = batch._Scorer(loaded, options, work, str(place / "out"), gpu=False)
    with failing(3, refuse(errno.ENOSPC)):
        (words,) = scorer({"index": [0]})["unwritten"]
    part = place / "out" / work[0].name(options.key)
    assert str(WriteError(*json.loads(words))) == (
        f"{part}: cannot be written (No space left on device); existing content is kept"
    )
    assert scorer({"index": [0]})["unwritten"] == [""]
    assert part.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ECONNREFUSED])
def test_what_a_disk_says_is_not_mlflows_fault(number: int, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(HourglassError) as caught, answering(settings):
        refuse(number)()
    if number == errno.ECONNREFUSED:
        assert str(caught.value).startswith("MLflow (sqlite:///")
        assert caught.value.exit_code == 2
    else:
        assert str(caught.value) == (
            f"{tmp_path}: cannot be written ({os.strerror(number)}); existing content is kept"
        )
        assert caught.value.exit_code == 1


COMMANDS = {
    "data manifest": ("{rows}", "--out", "{place}/model/m.json"),
    "data make digits": ("{place}/model",),
    "schema": ("{place}/model",),
    "report": ("{place}/other", "--out", "{place}/model/report.html"),
    "plot-model": ("{place}/other", "--out", "{place}/model/network.svg"),
    "encode": ("{place}/other", "{rows}", "--out", "{place}/model/codes.parquet"),
    "generate": ("{place}/other", "--count", "3", "--out", "{place}/model/rows.parquet"),
}


INSIDE = "lies in the folder of an artifact, which holds no other files and would no longer load"


def wait_for_names(folder: Path) -> None:
    """What a save leaves that was killed right after its manifest."""
    files = json.loads((folder / artifact.MANIFEST).read_bytes())["files"]
    for file, entry in files.items():
        (folder / file).rename(folder / f"{file}.{entry['sha256'][:16]}")
    artifact.load(str(folder))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["model", "cut short", "model/a", "model/a/b", "link", "link/a"])
def test_no_command_writes_into_an_artifact(
    command: str, where: str, place: Path, capsys: Any
) -> None:
    shards(place / "rows")
    if where == "cut short":
        wait_for_names(place / "model")
    if where.startswith("link"):
        (place / "link").symlink_to(place / "model")
    before = visible(place / "model")
    into = where.replace("cut short", "model")
    words = [
        w.replace("{place}/model", f"{{place}}/{into}").format(place=place, rows=place / "rows")
        for w in COMMANDS[command]
    ]
    with pytest.raises(SystemExit) as end:
        hourglass(*command.split(), *words)(place)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {words[-1]}: {INSIDE}; write elsewhere\n"
    assert visible(place / "model") == before


@pytest.mark.parametrize("output", ["model", "model/scores", "model/a/scores"])
def test_no_scores_in_an_artifact(output: str, place: Path) -> None:
    """Told before the lock is there; by `check --data` as well."""
    before = sorted((place / "model").rglob("*"))
    shards(place / "rows")
    scored = {"uri": str(place / "rows"), "output": str(place / output), "model": "m"}
    job = parse({"kind": "score", **scored})
    assert isinstance(job, ScoreJob)
    model = SimpleNamespace(path=str(place / "other"))
    message = re.escape(f"{place / output}: {INSIDE}; write elsewhere")
    with pytest.raises(DataError, match=message):
        batch.score(job, model, None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        check.against_shards("job.yaml", job, Settings(home=place / "home"))
    assert sorted((place / "model").rglob("*")) == before


def test_a_manifest_of_another_kind_keeps_nobody_out(place: Path) -> None:
    (place / artifact.MANIFEST).write_text('{"name": "a web page"}')
    shards(place / "rows")
    hourglass("data", "manifest", place / "rows", "--out", place / "m.json")(place)
    assert (place / "m.json").exists()


def test_above_a_place() -> None:
    assert list(storage.above("s3://bucket/a/b/")) == [
        "s3://bucket/a/b",
        "s3://bucket/a",
        "s3://bucket",
    ]
    assert list(storage.above("file:///a/b")) == list(storage.above("/a/b")) == ["/a/b", "/a", "/"]


@pytest.mark.parametrize("name", [artifact.MANIFEST, "notes.json"])
def test_data_manifest_replaces_nothing_but_a_manifest(
    name: str, place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it has a name that no other file of ours has."""
    shards(place / "rows")
    shutil.copy(place / "model" / artifact.MANIFEST, place / name)
    before = (place / name).read_bytes()
    with pytest.raises(SystemExit) as end:
        hourglass("data", "manifest", place / "rows", "--out", place / name)(place)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {place / name}: exists, and is not the manifest of a dataset; move it away, or write "
        "elsewhere (--out FILE)\n"
    )
    assert (place / name).read_bytes() == before
    monkeypatch.chdir(place)
    for _ in range(2):
        hourglass("data", "manifest", "rows")(place)
    assert (place / "data-manifest.json").exists()
    assert (place / name).read_bytes() == before


def test_data_make_replaces_no_other_rows(place: Path, capsys: Any) -> None:
    shards(place / "mine")
    (place / "mine" / "a.parquet").rename(place / "mine" / "part-00001.parquet")
    before = visible(place / "mine")
    with pytest.raises(SystemExit) as end:
        hourglass("data", "make", "digits", place / "mine")(place)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {place}/mine/part-00001.parquet: exists, and holds other rows; move it away, or "
        "choose another folder\n"
    )
    assert visible(place / "mine") == before


@pytest.mark.parametrize("content", ["{}", "[1]", "7", "not JSON"])
def test_schema_replaces_nothing_but_schemas(content: str, place: Path, capsys: Any) -> None:
    folder = place / "out"
    folder.mkdir()
    for name in ("train.json", "tune.json"):
        (folder / name).write_text(content)
    (folder / "score.json").write_text('{"type": "object", "properties": {}}')
    before = visible(folder)
    with pytest.raises(SystemExit) as end:
        hourglass("schema", folder)(place)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: "
        + "\n".join(
            f"{folder}/{name}: exists and is not a JSON Schema; move it, or choose another folder"
            for name in ("train.json", "tune.json")
        )
        + "\n"
    )
    assert visible(folder) == before
    for name in ("train.json", "tune.json"):
        (folder / name).unlink()
    for _ in range(2):
        hourglass("schema", folder)(place)
    assert len(visible(folder)) == 4
