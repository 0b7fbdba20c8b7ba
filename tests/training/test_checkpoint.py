"""Checkpoints: committed in two phases, verified before use, never lost to a kill or a full disk."""

import errno
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hourglass import storage
from hourglass.errors import ArtifactError, DataError, ReadError, TrainingError
from hourglass.training.checkpoint import COMMIT, STATE, Checkpoints
from hourglass.training.state import State

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import fresh, generated, job, run, same_bits

ROWS = generated(80)
SPEC = job(epochs=1)


@pytest.fixture(scope="module")
def trained() -> State:
    return run(SPEC, ROWS).state


def at(trained: State, step: int) -> State:
    """The trained state as if it stood at `step`; its first weight says which."""
    trained.step = step
    with torch.no_grad():
        next(trained.module.parameters())[0, 0] = float(step)
    return trained


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path / "checkpoints"), "digits-1", "d" * 64, 1)


def names(saved: Checkpoints) -> list[str]:
    return storage.names(saved.uri)


def newest_step(saved: Checkpoints) -> tuple[int | None, list[str]]:
    """The step that a resumed run would start from, and what it is told."""
    reported: list[str] = []
    name = saved.newest(reported.append)
    if name is None:
        return None, reported
    state = fresh(SPEC, ROWS)
    state.restore(*saved.load(name))
    assert next(state.module.parameters())[0, 0].item() == state.step  # never mixed
    return state.step, reported


def test_what_is_saved_is_what_is_loaded(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 420))
    (name,) = names(saved)
    assert re.fullmatch(r"00000420\.[0-9a-f]{8}", name)
    state = fresh(SPEC, ROWS)
    state.restore(*saved.load(name))
    assert same_bits(state.tensors(), trained.tensors())
    assert state.history == trained.history


def test_the_record_says_what_it_belongs_to(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 7))
    folder = Path(saved.uri) / names(saved)[0]
    commit = json.loads((folder / COMMIT).read_bytes())["commit"]
    assert (commit["run"], commit["data"], commit["workers"]) == ("digits-1", "d" * 64, 1)
    assert commit["position"]["step"] == 7
    assert commit["files"][STATE]["bytes"] == (folder / STATE).stat().st_size


def test_the_newest_and_the_one_before_are_kept(saved: Checkpoints, trained: State) -> None:
    for step in (1, 2, 3, 10):
        saved.save(at(trained, step))
        assert len(names(saved)) == min(2, step)
    assert [name[:8] for name in names(saved)] == ["00000003", "00000010"]


def test_what_is_not_a_checkpoint_is_left_alone(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 1))
    (Path(saved.uri) / "notes.txt").write_text("mine")
    for step in (2, 3):
        saved.save(at(trained, step))
    assert "notes.txt" in names(saved)
    assert newest_step(saved) == (3, [])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zero(content: bytes) -> bytes:
    return bytes(len(content))


def empty(content: bytes) -> bytes:
    return b""


def flip(share: float) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        at = int(share * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return flipped


DAMAGES = [cut, zero, empty, *[flip(i / 24) for i in range(25)]]


@pytest.mark.parametrize("file", [STATE, COMMIT])
def test_damage_falls_back_to_the_newest_intact_one(
    file: str, saved: Checkpoints, trained: State
) -> None:
    """RAY-08: cut, zeroed, emptied or with one bit flipped anywhere, 2 x 28 variants."""
    saved.save(at(trained, 1))
    saved.save(at(trained, 2))
    path = Path(saved.uri) / names(saved)[1] / file
    good = path.read_bytes()
    for damage in DAMAGES:
        path.write_bytes(damage(good))
        step, reported = newest_step(saved)
        assert step == 1
        assert len(reported) == 1
        assert reported[0].startswith(f"skipped checkpoint {path}: ")
    path.write_bytes(good)
    assert newest_step(saved) == (2, [])


def test_the_sentences_about_damage(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 1))
    folder = Path(saved.uri) / names(saved)[0]
    state, commit = (folder / STATE).read_bytes(), (folder / COMMIT).read_bytes()

    def reported(file: str, content: bytes | None) -> str:
        (folder / STATE).write_bytes(state)
        (folder / COMMIT).write_bytes(commit)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        return newest_step(saved)[1][0].removeprefix(f"skipped checkpoint {folder}/")

    size = len(state)
    assert reported(STATE, state[:-1]) == f"{STATE}: {size - 1} bytes, committed were {size}"
    assert reported(STATE, flip(0.5)(state)) == f"{STATE}: not what was committed (SHA-256)"
    assert reported(STATE, None) == f"{STATE}: cannot be read (No such file or directory)"
    assert reported(COMMIT, None) == f"{COMMIT}: missing, it was never committed"
    assert reported(COMMIT, b"{}") == f"{COMMIT}: damaged"


def test_a_folder_without_a_commit_is_no_checkpoint(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 1))
    saved.save(at(trained, 2))
    (Path(saved.uri) / names(saved)[1] / COMMIT).unlink()
    assert newest_step(saved)[0] == 1
    shutil.rmtree(Path(saved.uri) / names(saved)[0])
    assert newest_step(saved)[0] is None


def test_after_a_fall_back_two_intact_ones_are_kept_again(
    saved: Checkpoints, trained: State
) -> None:
    """A damaged checkpoint of a later step must not push an intact one out."""
    for step in (10, 20):
        saved.save(at(trained, step))
    path = Path(saved.uri) / names(saved)[1] / STATE
    path.write_bytes(cut(path.read_bytes()))
    assert newest_step(saved)[0] == 10
    saved.save(at(trained, 15))
    assert [name[:8] for name in names(saved)] == ["00000010", "00000015"]
    assert newest_step(saved) == (15, [])


ONCE = "/checkpoints/00000020"


def flickering(monkeypatch: pytest.MonkeyPatch, file: str, error: OSError) -> None:
    """From now on one of the checkpoint's files cannot be read."""
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if ONCE in str(path) and path.name == file:
            raise error
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)


@pytest.mark.parametrize("file", [STATE, COMMIT])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_damaged(
    file: str, number: int, saved: Checkpoints, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt ends, and all that was committed stays, also where somebody went on without it."""
    for step in (10, 20):
        saved.save(at(trained, step))
    path = Path(saved.uri) / names(saved)[1] / file
    with monkeypatch.context() as patch:
        flickering(patch, file, OSError(number, os.strerror(number)))
        with pytest.raises(ReadError) as caught:
            newest_step(saved)
        assert str(caught.value).startswith(f"{path}: ")
        saved.save(at(trained, 5))
    assert [name[:8] for name in names(saved)] == ["00000005", "00000010", "00000020"]
    saved.save(at(trained, 6))
    assert newest_step(saved) == (20, [])


def test_taken_for_damaged_it_would_be_lost(
    saved: Checkpoints, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the difference the run begins anew and removes what it had."""
    saved.save(at(trained, 20))
    load = Checkpoints.load

    def damaged(self: Checkpoints, name: str) -> Any:
        try:
            return load(self, name)
        except OSError:
            raise ArtifactError(name) from None

    monkeypatch.setattr(Checkpoints, "load", damaged)
    with monkeypatch.context() as patch:
        flickering(patch, STATE, OSError(errno.EIO, os.strerror(errno.EIO)))
        assert newest_step(saved)[0] is None
        saved.save(at(trained, 1))
    assert [name[:8] for name in names(saved)] == ["00000001"]


def test_a_number_that_is_not_finite_is_never_committed(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 1))
    broken = fresh(SPEC, ROWS)
    broken.step = 2
    with torch.no_grad():
        broken.module.network.encoder[0].weight[0, 0] = float("inf")
    with pytest.raises(TrainingError) as error:
        saved.save(broken)
    assert str(error.value) == (
        "stopped at step 2: weights.network.encoder.0.weight is NaN or infinite; not committed. "
        "The last checkpoint is kept; lower the learning rate or check the rows"
    )
    broken = fresh(SPEC, ROWS)
    broken.sums = {"error": torch.tensor(float("nan"))}
    with pytest.raises(TrainingError, match="sum of error on worker 0 is NaN or infinite"):
        saved.save(broken)
    assert newest_step(saved) == (1, [])


def test_other_data_and_another_run_are_refused(saved: Checkpoints, trained: State) -> None:
    saved.save(at(trained, 1))
    path = Path(saved.uri) / names(saved)[0] / COMMIT
    other = Checkpoints(saved.uri, saved.run, "e" * 64, 1)
    message = (
        f"{path}: the shards changed since this run began (manifest dddddddddddd then, "
        "eeeeeeeeeeee now); retrain with --fresh"
    )
    for refuse in (other.check, lambda: other.newest(pytest.fail)):
        with pytest.raises(DataError) as error:
            refuse()
        assert str(error.value) == message
    with pytest.raises(DataError, match="belongs to run digits-1, not to mnist-2"):
        Checkpoints(saved.uri, "mnist-2", saved.data, 1).check()
    saved.check()


def in_a_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process; its exit code, 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count: int) -> None:
    """End this process before its `count`-th change to the file system, as kill -9 would."""
    left = [count]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in ("open", "fsync", "replace", "mkdir", "unlink", "remove", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
    storage.open = watched(open)  # type: ignore[attr-defined]


def test_killed_at_every_change_to_the_file_system(saved: Checkpoints, trained: State) -> None:
    """OBJ-01: whatever the moment, the previous or the new checkpoint loads, whole."""
    saved.save(at(trained, 1))
    saved.save(at(trained, 2))
    home, spare = Path(saved.uri), Path(saved.uri + ".spare")
    shutil.copytree(home, spare)
    found: list[int | None] = []

    def commit() -> None:
        die_at(len(found) + 1)
        saved.save(at(trained, 3))

    code = 9
    while code == 9:
        shutil.rmtree(home)
        shutil.copytree(spare, home)
        code = in_a_child(commit)
        found.append(newest_step(saved)[0])
        saved.save(at(trained, 4))
        assert newest_step(saved)[0] == 4  # and the next commit clears up
    assert code == 0
    turn = found.index(3)
    assert len(found) >= 12
    assert found == [2] * turn + [3] * (len(found) - turn)
    assert 0 < turn < len(found) - 1


def test_without_the_order_of_writes_a_kill_loses_the_checkpoint(
    saved: Checkpoints, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a COMMIT written first names a state that is not there."""
    saved.save(at(trained, 1))
    later: list[tuple[str, bytes]] = []
    write = storage.write

    def swapped(uri: str, content: bytes) -> None:
        later.append((uri, content))
        if len(later) == 2:
            write(*later[1])
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write", swapped)
    with pytest.raises(KeyboardInterrupt):
        saved.save(at(trained, 2))
    step, reported = newest_step(saved)
    assert step == 1
    assert reported[0].endswith("cannot be read (No such file or directory)")


def test_what_cannot_be_removed_waits_for_the_next_commit(
    saved: Checkpoints, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no training and no checkpoint, only room."""

    def refuse(uri: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", refuse)
        for step in (1, 2, 3, 4):
            saved.save(at(trained, step))
        assert [int(name.partition(".")[0]) for name in saved.committed()] == [1, 2, 3, 4]
        assert newest_step(saved) == (4, [])
    saved.save(at(trained, 5))
    assert [int(name.partition(".")[0]) for name in saved.committed()] == [4, 5]


def full_disk(monkeypatch: pytest.MonkeyPatch, fail_at: int, number: int) -> None:
    """The `fail_at`-th flush of a file to disk fails."""
    calls, fsync = [0], os.fsync

    def failing(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == fail_at:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failed_write_stops_with_the_cause_and_keeps_what_was_there(
    fail_at: int, number: int, saved: Checkpoints, trained: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OBJ-02: in the state, in COMMIT, in their folders; the next save works."""
    saved.save(at(trained, 1))
    with monkeypatch.context() as patch:
        full_disk(patch, fail_at, number)
        try:
            saved.save(at(trained, 2))
        except TrainingError as error:
            cause = str(error)
        else:
            pytest.fail("the write did not fail")
    expected = (
        r"disk full: needed \d+ bytes, had \d+, "
        if number in (errno.ENOSPC, errno.EDQUOT)
        else rf"{re.escape(saved.uri)}/00000002\.\w+: {os.strerror(number)}"
    )
    assert re.fullmatch(
        rf"stopped at step 2: the checkpoint was not written, {expected}.*\. The last checkpoint "
        "is kept; free some space and run the same command to resume",
        cause,
    )
    for path in Path(saved.uri).rglob("*"):
        assert not path.name.endswith(".tmp")
    assert newest_step(saved)[0] in (1, 2)
    saved.save(at(trained, 3))
    assert newest_step(saved) == (3, [])


def test_a_file_size_limit_leaves_no_cut_file(saved: Checkpoints, trained: State) -> None:
    """OBJ-02 with a real short write: RLIMIT_FSIZE in a process of its own."""
    saved.save(at(trained, 1))
    printed = Path(saved.uri + ".printed")

    def limited() -> None:
        at(trained, 2)
        with open(printed, "w") as answer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            try:
                saved.save(trained)
            except TrainingError as error:
                answer.write(str(error))

    assert in_a_child(limited) == 0
    assert "disk full: needed" in printed.read_text()
    assert [path.name for path in Path(saved.uri).rglob("*") if path.is_file()].count(STATE) == 1
    assert newest_step(saved)[0] == 1
