"""One command at a time: a second is told who runs, on a disk and in S3, whatever became of the first."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError

from hourglass import run, storage
from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.errors import DataError, WriteError
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.tracking.outbox import Outbox
from hourglass.training import launch
from hourglass.training.complete import locked, run_uri

HOLD = """
import sys, time
from hourglass.tracking import locks
with locks.alone(sys.argv[1], "it", "not"):
    print("held", flush=True)
    sys.stdin.readline()
"""
DOING, INSTEAD = "/runs/x: another process trains this run", "elsewhere"
LEFT = r"; should it have been killed, this is free in (\d+) s"


@contextmanager
def holder(uri: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of its own that holds the lock until it is told to end, or dies."""
    command = [sys.executable, "-c", HOLD, uri]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refusal(uri: str) -> str | None:
    """What a second command is told; None when it may go on."""
    try:
        with locks.alone(uri, DOING, INSTEAD):
            return None
    except DataError as error:
        return str(error)


def reported(pid: int, left: str = "") -> str:
    who = rf"pid {pid} on {re.escape(socket.gethostname())}, since [0-9-]+T[0-9:]+Z"
    return rf"{DOING} \({who}{left}\); run this one when that has ended, or {INSTEAD}"


@pytest.fixture(params=["disk", "s3"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "runs" / ".x.lock")
    bucket: str = request.getfixturevalue("s3")
    return f"{bucket}/{request.node.name.replace('[', '-')}/.x.lock"


def test_a_second_process_is_told_who_runs_until_the_first_has_ended(lock: str) -> None:
    left = LEFT if lock.startswith("s3") else ""
    with holder(lock) as first:
        assert re.fullmatch(reported(first.pid, left), refusal(lock) or "")
        assert re.fullmatch(
            reported(first.pid, left), refusal(lock) or ""
        )  # which took nothing over
        first.communicate("end\n")
        assert refusal(lock) is None
    assert not storage.exists(lock)


def test_it_is_free_again_when_the_block_raises(lock: str) -> None:
    with pytest.raises(KeyError), locks.alone(lock, DOING, INSTEAD):
        raise KeyError
    assert refusal(lock) is None


def test_a_killed_process_holds_no_file(tmp_path: Path) -> None:
    lock = str(tmp_path / ".x.lock")
    with holder(lock) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert json.loads(Path(lock).read_text())["pid"] == str(first.pid)
        assert refusal(lock) is None


def test_a_killed_process_holds_an_object_for_as_long_as_was_said(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = f"{s3}/killed/.x.lock"
    with holder(lock) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
    printed = re.fullmatch(reported(first.pid, LEFT), refusal(lock) or "")
    assert printed is not None
    assert 0 < int(printed[1]) <= locks.LEASE_S
    monkeypatch.setattr(locks, "LEASE_S", 0.0)  # it has run out
    with locks.alone(lock, DOING, INSTEAD):
        monkeypatch.undo()
        assert re.fullmatch(reported(os.getpid(), LEFT), refusal(lock) or "")
    assert not storage.exists(lock)


def test_an_object_is_kept_for_as_long_as_its_holder_lives(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put anew again and again, each time with another ETag, on the condition of the last."""
    lock, etags = f"{s3}/renewed/.x.lock", set()
    monkeypatch.setattr(locks, "RENEW_S", 0.01)
    fs, path = storage.filesystem(lock)
    with locks.alone(lock, DOING, INSTEAD):
        while len(etags) < 4:
            fs.invalidate_cache()
            etags.add(fs.info(path)["ETag"])
        assert re.fullmatch(reported(os.getpid(), LEFT), refusal(lock) or "")


LOST = (
    r"{lock}: this lock could not be kept \(was this machine asleep, or S3 out of reach\?\), and {who} has "
    "taken it over; this command was stopped, so that not both write. Run it again when that has ended"
)


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another"])
def test_who_lost_an_object_is_stopped_and_leaves_it_to_the_other(
    s3: str, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    """In a thread that cannot be interrupted, which is the control, it is told at the end."""
    lock = f"{s3}/lost-{main}/.x.lock"
    monkeypatch.setattr(locks, "RENEW_S", 0.05)
    other, came_to_its_end, caught = locks._Lease(lock), [], []

    def lose() -> None:
        renewing = next(t for t in threading.enumerate() if "renew" in t.name)
        other._put({})
        renewing.join()
        threading.Event().wait(60 if main else 0)
        came_to_its_end.append(True)

    def work() -> None:
        with pytest.raises(DataError) as error, locks.alone(lock, DOING, INSTEAD):
            lose()
        caught.append(str(error.value))

    if main:
        work()
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    who = rf"pid {os.getpid()} on .*, since .*Z"
    assert re.fullmatch(LOST.format(lock=lock, who=who), caught[0])
    assert came_to_its_end == ([] if main else [True])
    assert storage.exists(lock)
    other.give_back()
    assert not storage.exists(lock)


def test_an_object_that_somebody_removed_is_put_again(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = f"{s3}/removed/.x.lock"
    monkeypatch.setattr(locks, "RENEW_S", 0.05)
    with locks.alone(lock, DOING, INSTEAD):
        storage.remove(lock)
        while not storage.exists(lock):
            threading.Event().wait(0.01)
        assert re.fullmatch(reported(os.getpid(), LEFT), refusal(lock) or "")
    assert not storage.exists(lock)


def test_an_object_that_has_gone_meanwhile_was_another_process(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sleep longer than the lease another one may have come, done the work and gone."""
    lock = f"{s3}/asleep/.x.lock"
    monkeypatch.setattr(locks, "RENEW_S", 0.05)
    monkeypatch.setattr(locks, "LEASE_S", 0.0)

    def sleep() -> None:
        storage.remove(lock)
        threading.Event().wait(60)

    with pytest.raises(DataError) as caught, locks.alone(lock, DOING, INSTEAD):
        sleep()
    assert re.fullmatch(LOST.format(lock=lock, who="another process"), str(caught.value))
    assert not storage.exists(lock)


def test_ctrl_c_is_ctrl_c(s3: str) -> None:
    with pytest.raises(KeyboardInterrupt), locks.alone(f"{s3}/ctrl-c/.x.lock", DOING, INSTEAD):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_an_answer_that_was_lost_on_the_way_counts(
    s3: str, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """A retried put is refused because the first one, whose answer nobody heard, is there."""
    lock = f"{s3}/lost-answer-{taken}/.x.lock"
    put = locks._Lease._put

    def unheard(self: Any, condition: Any) -> bool:
        monkeypatch.setattr(locks._Lease, "_put", put)
        (locks._Lease(lock) if taken else self)._put(condition)
        return self._put(condition)

    monkeypatch.setattr(locks._Lease, "_put", unheard)
    printed = refusal(lock)
    assert (printed is None) != taken


def test_of_many_at_once_one_gets_it(s3: str) -> None:
    """All have seen that nobody holds it before any of them takes it."""
    assert at_once(f"{s3}/many/.x.lock", 8) == 1


def test_without_the_condition_all_get_it(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    put = locks._Lease._put
    monkeypatch.setattr(locks._Lease, "_put", lambda self, _: put(self, {}))
    assert at_once(f"{s3}/without/.x.lock", 8) == 8


def at_once(lock: str, many: int) -> int:
    """How many of as many threads take the lock."""
    looked, took = threading.Barrier(many), []

    def take() -> None:
        lease = locks._Lease(lock)
        look = lease._look
        first = iter([True])

        def all_look() -> Any:
            found = look()
            if next(first, False):
                looked.wait(60)
            return found

        lease._look = all_look  # type: ignore[method-assign]
        took.append(lease.take() is None)

    threads = [threading.Thread(target=take) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(took)


def test_a_store_without_conditions_is_used_without_them(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = f"{s3}/old-store/.x.lock"
    fs = storage.filesystem(lock)[0]
    call, asked = fs.call_s3, []

    def call_s3(name: str, **words: Any) -> Any:
        asked.append(sorted({"IfMatch", "IfNoneMatch"} & {*words}))
        if asked[-1]:
            raise OSError(38, "A header you provided implies functionality that is not implemented")
        return call(name, **words)

    monkeypatch.setattr(type(fs), "call_s3", lambda _, name, **words: call_s3(name, **words))
    with locks.alone(lock, DOING, INSTEAD):
        assert re.fullmatch(reported(os.getpid(), LEFT), refusal(lock) or "")
    assert ["IfNoneMatch"] in asked


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (409, 3), (412, 3)])
def test_a_store_that_contradicts_itself_is_given_up_on(
    s3: str, monkeypatch: pytest.MonkeyPatch, status: int, asked: int
) -> None:
    """It says that nobody holds the lock, and refuses it to everybody; nobody asks for ever."""
    lock = f"{s3}/contradiction/.x.lock"
    monkeypatch.setattr(locks, "TRIES", 3)
    monkeypatch.setattr(locks, "PAUSE_S", 0.0)
    refuse, puts = refusing(lock, status)
    monkeypatch.setattr(type(storage.filesystem(lock)[0]), "call_s3", refuse)
    with pytest.raises(WriteError) as caught, locks.alone(lock, DOING, INSTEAD):
        pass
    reason = (
        "the store said 404"
        if status == 404
        else "S3 refused this lock 3 times, although nobody holds it"
    )
    assert str(caught.value) == f"{lock}: cannot be written ({reason}); existing content is kept"
    assert len(puts) == asked


def test_a_store_that_contradicts_itself_once_is_asked_again(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = f"{s3}/once/.x.lock"
    monkeypatch.setattr(locks, "PAUSE_S", 0.0)
    refuse, puts = refusing(lock, 409, times=1)
    monkeypatch.setattr(type(storage.filesystem(lock)[0]), "call_s3", refuse)
    with locks.alone(lock, DOING, INSTEAD):
        assert len(puts) == 2
        assert re.fullmatch(reported(os.getpid(), LEFT), refusal(lock) or "")


def refusing(lock: str, status: int, times: int = 50) -> tuple[Any, list[str]]:
    """A `call_s3` that refuses the first puts of an object as a store does, and those it was asked."""
    fs = storage.filesystem(lock)[0]
    call, puts = fs.call_s3, []

    def call_s3(_: Any, name: str, **words: Any) -> Any:
        if name == "put_object":
            puts.append(name)
            assert len(puts) <= 50, "it asks for ever"
            if len(puts) <= times:
                answer = {
                    "Error": {"Code": str(status), "Message": f"the store said {status}"},
                    "ResponseMetadata": {"HTTPStatusCode": status},
                }
                raise s3fs.errors.translate_boto_error(ClientError(answer, "PutObject"))
        return call(name, **words)

    return call_s3, puts


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("s3://no-such-bucket/.x.lock", "The specified bucket does not exist"),
        ("/proc/version/.x.lock", "File exists"),
    ],
)
def test_where_no_lock_can_be_the_command_ends_with_a_sentence(
    s3: str, lock: str, reason: str
) -> None:
    with pytest.raises(WriteError) as caught, locks.alone(lock, DOING, INSTEAD):
        pass
    assert str(caught.value) == f"{lock}: cannot be written ({reason}); existing content is kept"


def test_a_full_disk_hides_who_runs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with locks.alone(str(tmp_path / ".x.lock"), DOING, INSTEAD):
            assert refusal(str(tmp_path / ".x.lock")) == (
                f"{DOING}; run this one when that has ended, or {INSTEAD}"
            )


@pytest.mark.parametrize("number", locks.NO_LOCKS)
def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A run, the spool of its events and the copies of registered models alike."""

    def refuse(*_: Any) -> None:
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    spool, entered = Outbox(tmp_path, "x"), []

    def work() -> None:
        with locks.alone(str(tmp_path / ".x.lock"), DOING, INSTEAD):
            entered.append("run")
        with locks.locked(tmp_path / ".lock"):
            entered.append("copy")
        spool.append("end", status="finished")

    with pytest.warns(UserWarning) as caught:
        work()
    assert entered == ["run", "copy"]
    assert [event["kind"] for _, event in spool.pending()] == ["end"]
    assert {str(warning.message) for warning in caught} == {
        f"{tmp_path}: this file system does not support locks (No locks available), so nothing "
        "keeps a second command from the same work; run only one at a time"
    }


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_other_words_of_a_disk_are_no_reason_to_go_on_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(WriteError, match="refused"),
        locks.alone(str(tmp_path / ".x.lock"), DOING, INSTEAD),
    ):
        pass


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_finished_run_is_found_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool, fresh: bool
) -> None:
    """Any other run ends at once there, before it reads anything."""
    job, settings = a_job(), Settings(home=tmp_path)
    uri = Path(run_uri(job, settings))
    (uri / "artifact").mkdir(parents=True)
    if finished:
        (uri / "artifact" / "manifest.json").write_text("{}")
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    reported = []
    try:
        with locked(job, settings, fresh):
            reported.append("entered")
    except WriteError as error:
        reported.append(str(error))
    lock = locks.beside(str(uri))
    refused = f"{lock}: cannot be written (Read-only file system); existing content is kept"
    assert reported == ["entered" if finished and not fresh else refused]


@pytest.mark.parametrize(
    ("folder", "lock"),
    [("/runs/x", "/runs/.x.lock"), ("s3://bucket/runs/x/", "s3://bucket/runs/.x.lock")],
)
def test_the_lock_of_a_folder_is_beside_it(folder: str, lock: str) -> None:
    assert locks.beside(folder) == lock


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_two_train_commands_at_once(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The second is refused before it reads anything, and so before it could harm the first."""
    runs = f"{request.getfixturevalue('s3')}/two" if where == "s3" else str(tmp_path / "runs")
    job, settings = a_job(), Settings(home=tmp_path, runs=runs)
    opened: list[str] = []
    monkeypatch.setattr(launch, "open_dataset", lambda *_: opened.append("opened"))
    uri = run_uri(job, settings)
    with holder(locks.beside(uri)) as first:
        for fresh in (False, True):
            with pytest.raises(DataError) as caught:
                run.train(job, settings, fresh)
            assert caught.value.exit_code == 2
            left = LEFT if where == "s3" else ""
            wording = reported(first.pid, left).replace("/runs/x", uri)
            wording = wording.replace(INSTEAD, r"under another name \(--set name=NAME\)")
            assert re.fullmatch(wording, str(caught.value))
    assert opened == []


def a_job() -> TrainJob:
    made = parse(
        {
            "kind": "train",
            "name": "two",
            "data": {"uri": "/rows", "features": {"vector": "x"}},
            "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        }
    )
    assert isinstance(made, TrainJob)
    return made
