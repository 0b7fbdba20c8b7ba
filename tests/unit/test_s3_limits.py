"""An S3 endpoint that does not answer, or not to the end, is given up on, with a message."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from hourglass import cli, storage
from hourglass.cli import data
from hourglass.data.manifest import content_digest, list_shards, load_manifest, scan
from hourglass.errors import DataError, SpecError
from hourglass.settings import Settings

URI = "s3://bucket/a.parquet"
SIZE = 40
HEAD = f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "x"\r\n\r\n'.encode()
ADVICE = "check AWS_ENDPOINT_URL and the network, or wait longer (HOURGLASS_S3_READ_TIMEOUT_S)"
REACH = "check AWS_ENDPOINT_URL, the credentials and the region"
Answer = Callable[[socket.socket, bytes], None]


def never(connection: socket.socket, asked: bytes) -> None:
    """It says nothing."""


def halfway(connection: socket.socket, asked: bytes) -> None:
    """It says how much there is, and not all of it."""
    connection.sendall(HEAD if asked.startswith(b"HEAD") else HEAD + b"x")


def drop_by_drop(connection: socket.socket, asked: bytes) -> None:
    """It says one byte after the other, each in time."""
    connection.sendall(HEAD)
    for _ in range(0 if asked.startswith(b"HEAD") else SIZE):
        time.sleep(0.02)
        connection.sendall(b"x")


def hangs_up(connection: socket.socket, asked: bytes) -> None:
    connection.close()


def refusing(status: str, code: str) -> Answer:
    """It says that it does not want to."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"

    def refuses(connection: socket.socket, asked: bytes) -> None:
        printed = "" if asked.startswith(b"HEAD") else body
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall((head + printed).encode())

    return refuses


class Endpoint:
    """Accepts, reads one request of each connection, and answers as it is told to."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        asked = b""
        try:
            while b"\r\n\r\n" not in asked:
                asked += connection.recv(65536)
            self.asked += 1
            self._answer(connection, asked)
        except OSError:
            pass  # the client has gone

    def close(self) -> None:
        for open_socket in (self._listening, *self._open):
            open_socket.close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Endpoint]]:
    """`endpoint(answer)` is where S3 is from now on, for reads that wait 0.3 s and no longer."""
    made: list[Endpoint] = []

    def make(answer: Answer, **variables: str) -> Endpoint:
        made.append(Endpoint(answer))
        usual = {
            "AWS_ENDPOINT_URL": made[-1].url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hidden",
            "AWS_DEFAULT_REGION": "us-east-1",
            "HOURGLASS_S3_CONNECT_TIMEOUT_S": "5",
            "HOURGLASS_S3_READ_TIMEOUT_S": "0.3",
        }
        for name, value in (usual | variables).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        return made[-1]

    monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    yield make
    for one in made:
        one.close()
    s3fs.S3FileSystem.clear_instance_cache()


USES: list[Any] = [scan, list_shards, content_digest, load_manifest]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_one_that_never_answers_is_given_up_on(endpoint: Any, use: Any) -> None:
    found = endpoint(never, AWS_MAX_ATTEMPTS="1")
    with pytest.raises(DataError) as caught:
        use(URI)
    assert str(caught.value).startswith(f"{URI}: S3 did not answer in time (Read timeout on endpo")
    assert str(caught.value).endswith(ADVICE)
    assert "hidden" not in str(caught.value)
    assert 0 < found.asked <= 2 * storage.S3FS_TRIES


@pytest.mark.parametrize(("variables", "tries"), [({}, 2), ({"AWS_MAX_ATTEMPTS": "3"}, 3)])
def test_how_often_it_is_asked_is_known(
    endpoint: Any, variables: dict[str, str], tries: int
) -> None:
    found = endpoint(never, HOURGLASS_S3_READ_TIMEOUT_S="0.1", **variables)
    with pytest.raises(DataError):
        list_shards(URI)
    assert found.asked == storage.S3FS_TRIES * tries
    own = endpoint(never, HOURGLASS_S3_READ_TIMEOUT_S="0.1", HOURGLASS_S3_ATTEMPTS="1", **variables)
    with pytest.raises(DataError):
        list_shards(URI)
    assert own.asked == storage.S3FS_TRIES


def test_one_that_stops_halfway_is_given_up_on(endpoint: Any) -> None:
    endpoint(halfway)
    with pytest.raises(DataError) as caught:
        scan(URI)
    assert str(caught.value) == (
        f"{URI}: S3 did not answer in time (the answer stopped halfway); {ADVICE}"
    )


def test_one_that_answers_drop_by_drop_is_given_up_on(endpoint: Any) -> None:
    endpoint(drop_by_drop)
    assert storage.read(URI) == b"x" * SIZE  # the control: no silence is too long
    endpoint(drop_by_drop, HOURGLASS_S3_TOTAL_TIMEOUT_S="0.2")
    with pytest.raises(DataError) as caught:
        load_manifest(URI)
    assert str(caught.value).endswith(ADVICE)


def test_one_that_hangs_up_is_named(endpoint: Any) -> None:
    endpoint(hangs_up)
    with pytest.raises(DataError) as caught:
        scan(URI)
    assert str(caught.value).startswith(f"{URI}: S3 cannot be reached (Connection was closed bef")
    assert str(caught.value).endswith(REACH)


@pytest.mark.parametrize(("answer", "advice"), [(never, ADVICE), (hangs_up, REACH)])
def test_whatever_asked_ends_with_a_sentence(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, answer: Answer, advice: str
) -> None:
    """Not everything that asks S3 knows how to say what went wrong."""
    endpoint(answer, AWS_MAX_ATTEMPTS="1")
    for act in (lambda: data.inspect([URI]), lambda: storage.exists(URI)):
        monkeypatch.setattr(cli, "app", act)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        printed = capsys.readouterr().err.strip().splitlines()[-1]
        assert printed.startswith("error: ")
        assert printed.endswith(advice)


MODEL = "s3://bucket/model"
COMMANDS = [
    ["encode", MODEL, "rows", "--out", "codes.parquet"],
    ["report", MODEL, "--out", "report.html"],
    ["plot-model", MODEL, "--out", "network.svg"],
    ["check", "score.yaml", "--data"],
]


@pytest.mark.parametrize(
    ("status", "code", "printed"),
    [
        ("403 Forbidden", "AccessDenied", "permission denied; check the credentials"),
        ("400 Bad Request", "BadOne", "S3 refused ([Errno"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_refusal_names_the_place_and_what_to_do(
    endpoint: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: Any,
    command: list[str],
    status: str,
    code: str,
    printed: str,
) -> None:
    endpoint(refusing(status, code), AWS_MAX_ATTEMPTS="1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hourglass", *command])
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "rows.parquet", write_page_checksum=True)
    Path("score.yaml").write_text(f"kind: score\nuri: rows.parquet\nmodel: {MODEL}\noutput: out\n")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].removeprefix("error: ").strip().startswith(f"{MODEL}/manifest.json: {printed}")


def test_errors_that_are_not_of_s3_stay_what_they_are() -> None:
    for error in (IndexError("x"), ValueError("x"), OSError("x"), TimeoutError("x"), None):
        assert storage.trouble(error) is None


def test_settings_that_are_none_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOURGLASS_S3_READ_TIMEOUT_S", "-3")
    monkeypatch.setenv("HOURGLASS_S3_ATTEMPTS", "no")
    with pytest.raises(SpecError) as caught:
        Settings()
    monkeypatch.setenv("HOURGLASS_S3_TOTAL_TIMEOUT_S", "inf")
    with pytest.raises(
        SpecError, match="S3_TOTAL_TIMEOUT_S: found 'inf'; input should be a finite"
    ):
        Settings()
    monkeypatch.delenv("HOURGLASS_S3_ATTEMPTS")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "none")
    with pytest.raises(SpecError, match="\\nAWS_MAX_ATTEMPTS: found 'none'; ") as other:
        Settings()
    assert "HOURGLASS_S3_ATTEMPTS" not in str(other.value)
    assert str(caught.value).splitlines() == [
        "HOURGLASS_S3_READ_TIMEOUT_S: found '-3'; input should be greater than 0",
        "HOURGLASS_S3_ATTEMPTS: found 'no'; input should be a valid integer, unable to parse string "
        "as an integer",
    ]


def late(connection: socket.socket, asked: bytes) -> None:
    """It answers in time, after a while."""
    time.sleep(0.2)
    connection.sendall(HEAD if asked.startswith(b"HEAD") else HEAD + b"x" * SIZE)


@pytest.mark.parametrize("worker", [False, True])
def test_a_wait_is_said(
    endpoint: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, worker: bool
) -> None:
    """Once for a read, and where it is seen: a worker's standard output is, its errors are not."""
    monkeypatch.setattr(storage, "WAIT_S", 0.1)
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    if worker:
        monkeypatch.setenv("RAY_RAYLET_PID", "1")
    endpoint(late)
    assert storage.read(URI) == b"x" * SIZE
    output, errors = capfd.readouterr()
    said = f"{URI}: S3 has not answered for 0.1 s; still waiting, at most 600 s for a request\n"
    assert (output, errors) == ((said, "") if worker else ("", said))


def test_an_answer_in_time_is_not_remarked_on(
    endpoint: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The control; and files of this machine start no timer."""
    endpoint(late)
    assert storage.read(URI) == b"x" * SIZE
    (tmp_path / "a").write_bytes(b"x")
    before = threading.active_count()
    with storage.reading(str(tmp_path / "a")):
        assert threading.active_count() == before
    assert capfd.readouterr() == ("", "")
