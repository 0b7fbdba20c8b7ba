"""RAY-02: token files are made closed, whatever the umask, and refused when empty or open."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hourglass.cluster import tokens
from hourglass.errors import ClusterError


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=lambda mask: f"umask{mask:03o}")
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("any_umask")
def test_new_token_is_closed_under_any_umask(tmp_path: Path) -> None:
    path = tmp_path / "home" / "ray_token"
    token = tokens.ensure_token(path)
    assert len(token) == 64
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["ray_token"]


def test_umask_000_leaves_a_plain_file_open(tmp_path: Path) -> None:
    """Negative control: without our care the same umask gives a file everyone can read."""
    before = os.umask(0)
    (tmp_path / "plain").write_text("token")
    os.umask(before)
    assert mode(tmp_path / "plain") == 0o666
    with pytest.raises(
        ClusterError, match="found mode 0666, which lets other users access the token"
    ):
        tokens.read_token(tmp_path / "plain")


def test_token_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "serve_token"
    assert tokens.ensure_token(path) == tokens.ensure_token(path) == tokens.read_token(path)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "ray_token"
    first = tokens.ensure_token(path)
    tokens.write_token(path, "second")
    assert tokens.read_token(path) == first


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_exposed_file_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "ray_token"
    tokens.ensure_token(path)
    path.chmod(bits)
    with pytest.raises(ClusterError) as caught:
        tokens.ensure_token(path)
    assert str(caught.value) == (
        f"{path}: found mode {bits:04o}, which lets other users access the token, allowed is 0600; "
        f"run `chmod 600 {path}`, or remove the file to generate a new token if others may have "
        "read it"
    )
    path.chmod(0o600)
    assert tokens.ensure_token(path)


@pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
def test_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ray_token"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ClusterError) as caught:
        tokens.ensure_token(path)
    assert (
        str(caught.value) == f"{path}: the token file is empty; remove it to generate a new token"
    )


@pytest.mark.parametrize("content", [b"two words", b"a\nb", b"\xff\xfe", b"x" * 4097])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ray_token"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ClusterError, match="not a token"):
        tokens.read_token(path)


def test_missing_file_says_where_a_token_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no token found; copy the cluster's token"):
        tokens.read_token(tmp_path / "ray_token")


def test_folder_loses_foreign_writers_and_keeps_readers(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o777)
    tokens.ensure_token(folder / "ray_token")
    assert mode(folder) == 0o755


def test_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ClusterError, match="found a file, allowed is a folder"):
        tokens.ensure_token(tmp_path / "home" / "ray_token")


def test_shared_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ClusterError, match="shared with all users of this machine"):
        tokens.ensure_token(tmp_path / "ray_token")
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
