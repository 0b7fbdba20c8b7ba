"""A name either holds all of its bytes or does not exist."""

import contextlib
import errno
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from hourglass import storage
from hourglass.errors import DataError, NotDurableError, ReadError, WriteError


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_write_read_names_size_remove(tmp_path: Path, scheme: str) -> None:
    root = scheme + str(tmp_path)
    for name, content in (("b/c", b"new"), ("a", b""), ("b/c", b"newer")):
        storage.write(storage.join(root, name), content)
        assert storage.read(storage.join(root, name)) == content
        assert storage.size(storage.join(root, name)) == len(content)
    assert storage.names(root) == ["a", "b"]
    assert storage.names(storage.join(root, "b")) == ["c"]
    assert storage.names(storage.join(root, "nowhere")) == []
    assert storage.exists(storage.join(root, "b"))
    for name in ("a", "b", "b"):  # a file, a folder, nothing
        storage.remove(storage.join(root, name))
    assert not storage.exists(storage.join(root, "b"))
    assert storage.names(root) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None], ids=["old", "fresh"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, before: bytes | None
) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)
    monkeypatch.setattr(os, broken, refuse)
    with pytest.raises(OSError, match="No space left"):
        storage.write(str(target), b"new")
    assert [path.name for path in tmp_path.iterdir()] == (["file"] if before else [])
    assert before is None or target.read_bytes() == before


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError("Access Denied"), "Access Denied"),  # s3fs says no number
        (
            EndpointConnectionError(endpoint_url="http://s3"),
            'Could not connect to the endpoint URL: "',
        ),
    ],
)
def test_what_refuses_to_write_is_one_error(raised: Exception, reason: str) -> None:
    """One message, also after a way through a pickle, and an OSError like any."""
    with pytest.raises(WriteError) as caught, storage.writing("s3://b/k"):
        raise raised
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error).startswith(f"s3://b/k: cannot be written ({reason}")
    assert str(error).endswith("); existing content is kept")
    assert isinstance(error, OSError)
    assert (error.exit_code, error.filename) == (1, "s3://b/k")
    with pytest.raises(KeyError), storage.writing("s3://b/k"):
        raise KeyError  # a mistake of ours stays one


@pytest.mark.parametrize("what", ["write", "move"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EINVAL])
def test_a_folder_that_cannot_be_synced_keeps_nobody_from_the_new(
    what: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no message says that the old is there; a disk that syncs no folders is as good as it gets."""
    real, uri = os.fsync, tmp_path / "x"
    uri.write_bytes(b"old")
    (tmp_path / "y").write_bytes(b"new")

    def refused(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    reported = pytest.raises(NotDurableError) if number == errno.EIO else contextlib.nullcontext()
    with reported as caught:
        if what == "write":
            storage.write(str(uri), b"new")
        else:
            storage.move(str(tmp_path / "y"), str(uri))
    assert uri.read_bytes() == b"new"
    if number == errno.EIO:
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.exit_code == 1
        assert str(error) == (
            f"{tmp_path}: written, but may not survive a power cut (Input/output "
            "error); check the disk, and run the command again"
        )


@pytest.mark.parametrize(
    ("uri", "raised", "message"),
    [
        ("s3://b/k", PermissionError("Forbidden"), "permission denied; check the credentials"),
        ("/b/k", PermissionError(13, "Permission denied", "/b/k"), "permission denied"),
        ("/b/k", OSError(5, "Input/output error"), "cannot be read ([Errno 5] Input/output error)"),
        (
            "s3://b/k",
            OSError(16, "Please reduce your request rate."),
            "S3 refused ([Errno 16] Please reduce your request rate.); run again later, or check "
            "AWS_ENDPOINT_URL, the credentials and the region",
        ),
        (
            "s3://b/k",
            EndpointConnectionError(endpoint_url="http://s3"),
            'S3 cannot be reached (Could not connect to the endpoint URL: "http://s3"); check '
            "AWS_ENDPOINT_URL, the credentials and the region",
        ),
    ],
)
def test_what_refuses_to_read_is_one_error(uri: str, raised: Exception, message: str) -> None:
    """So that `suppress(OSError)` means all of them; what is not there is another thing."""
    with pytest.raises(ReadError) as caught, storage.writing("s3://o"), storage.reading(uri):
        raise raised
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == f"{uri}: {message}"
    assert isinstance(error, OSError)
    assert (error.exit_code, error.filename) == (2, uri)
    for other in (FileNotFoundError, NotADirectoryError, KeyError):
        with pytest.raises(other) as same, storage.reading(uri):
            raise other
        assert same.type is other


READS = [storage.read, storage.exists, storage.size, storage.names, storage.modified_ms]


@pytest.mark.parametrize("read", READS)
def test_every_read_says_where(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Any:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(storage, "filesystem", forbidden)
    with pytest.raises(ReadError) as caught:
        read("s3://b/k")
    assert str(caught.value) == "s3://b/k: permission denied; check the credentials"


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_new_folder_appears_whole(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "a" / "b"
    if there:
        target.mkdir(parents=True)
    with storage.new_folder(str(target)) as folder:
        storage.write(f"{folder}/c/d", b"x")
        assert (target / "c" / "d").exists() == there
    assert (target / "c" / "d").read_bytes() == b"x"
    with pytest.raises(WriteError) as caught, storage.new_folder(f"{tmp_path}/a/e") as folder:
        storage.write(f"{folder}/{'c' * 300}", b"x")
    assert str(caught.value) == (
        f"{tmp_path}/a/e: cannot be written (File name too long); existing content is kept"
    )
    assert storage.names(str(tmp_path / "a")) == ["b"]


def test_the_bytes_are_durable_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1]
        )
    storage.write(str(tmp_path / "file"), b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.parametrize("function", [storage.read, storage.size])
def test_nothing_there(tmp_path: Path, function: Any) -> None:
    with pytest.raises(FileNotFoundError):
        function(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("function", [storage.read, storage.exists, storage.names, storage.remove])
@pytest.mark.parametrize("uri", ["gs://bucket/key", "http://host/key", "pickle://x"])
def test_other_schemes_are_refused(function: Any, uri: str) -> None:
    with pytest.raises(DataError) as caught:
        function(uri)
    scheme = uri.split(":")[0]
    assert str(caught.value) == (
        f"{uri}: scheme '{scheme}://' is not supported; use a path or s3://bucket/key"
    )


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.touch(), None),
        (lambda path: None, None),
        (lambda path: path.symlink_to("elsewhere"), "is a symbolic link"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: (path.touch(), os.link(path, f"{path}2")), "has a second name (hard link)"),
    ],
    ids=["plain", "nothing", "link", "folder", "pipe", "hard-link"],
)
def test_irregular(tmp_path: Path, make: Any, problem: str | None, scheme: str) -> None:
    make(tmp_path / "file")
    assert storage.irregular(f"{scheme}{tmp_path / 'file'}") == problem


def test_join() -> None:
    assert storage.join("s3://bucket/runs/", "a", "b") == "s3://bucket/runs/a/b"
    assert storage.join("/runs", "a") == "/runs/a"
