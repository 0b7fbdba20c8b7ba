"""Serve files, the token, and the bounds that hold before a body is parsed."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from hourglass.config.serve import load
from hourglass.errors import ClusterError, SpecError
from hourglass.serving import limits, middleware
from hourglass.settings import Settings

SHIPPED = sorted((Path(__file__).parents[2] / "serve").glob("*.yaml"))
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_valid_for_us_and_for_ray(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    file = load(path)
    ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert file.http_options.host == "127.0.0.1"
    assert file.url.startswith("http://127.0.0.1:")


def test_all_mistakes_are_told_at_once() -> None:
    args = "applications.0.args"
    with pytest.raises(SpecError) as error:
        load(
            SHIPPED[0],
            [
                "proxy_location=Head",
                "http_options.port=0",
                f"{args}.max_batch_row=3",
                f"{args}.limits.depth=2",
                f"{args}.replicas={{min: 3, max: 2}}",
            ],
        )
    text = str(error.value)
    assert text.splitlines()[0].endswith("5 mistakes")
    assert "did you mean 'HeadOnly'?" in text
    assert "http_options.port: found 0" in text
    assert "did you mean 'max_batch_rows'?" in text
    assert "limits.depth: found 2" in text
    assert "min (3) must not be greater than max (2)" in text


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("applications.0.args.max_batch_rows=10", "so that the largest request fits in a batch"),
        ("applications.0.args.models=[]", "allowed is at least one model"),
        ("applications.0.args.models.0={name: a}", "uri: required field is missing"),
        (
            "applications.0.args.models=[{name: a, uri: x}, {name: a, uri: y}]",
            "the name 'a' is given twice",
        ),
        ("applications=[]", "allowed is exactly 1"),
        ("applications.0.import_path=os:system", "hourglass.serving.app:build"),
        ("applications.0.args.request_timeout_s=.inf", "finite"),
        ("http_options.ssl_keyfile=key.pem", "set both or neither"),
        ("applications.0.runtime_env={}", "unknown field"),
    ],
)
def test_mistakes_in_a_file_are_explained(override: str, says: str) -> None:
    with pytest.raises(SpecError, match="(?s)" + says.replace("(", r"\(")):
        load(SHIPPED[0], [override])


def settings(monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> Settings:
    monkeypatch.setenv("HOURGLASS_HOME", str(home))
    monkeypatch.delenv("HOURGLASS_SERVE_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HOURGLASS_SERVE_TOKEN", token)
    return Settings()


def test_token_of_the_environment_or_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "serve_token").write_text(TOKEN + "\n")
    (tmp_path / "serve_token").chmod(0o600)
    assert middleware.read_token(settings(monkeypatch, tmp_path)) == TOKEN
    assert middleware.read_token(settings(monkeypatch, tmp_path, "x" * 16)) == "x" * 16


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with space 123456", "ümlaut-0123456789"])
def test_weak_token_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    with pytest.raises(ClusterError, match="HOURGLASS_SERVE_TOKEN: found a token of") as error:
        middleware.read_token(settings(monkeypatch, tmp_path, token))
    assert not token or token not in str(error.value)


def test_exposed_linked_or_missing_token_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = settings(monkeypatch, tmp_path)
    path = tmp_path / "serve_token"
    with pytest.raises(ClusterError, match="cannot read the token"):
        middleware.read_token(machine)
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(
        ClusterError, match="found mode 0640, which lets other users access the token"
    ):
        middleware.read_token(machine)
    path.rename(tmp_path / "other")
    (tmp_path / "other").chmod(0o600)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(ClusterError, match="cannot read the token"):
        middleware.read_token(machine)


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ([b"Bearer " + TOKEN.encode()], True),
        ([b"bearer " + TOKEN.encode()], True),
        ([], False),
        ([b"Bearer " + TOKEN.encode()] * 2, False),
        ([b"Basic " + TOKEN.encode()], False),
        ([TOKEN.encode()], False),
        ([b"Bearer"], False),
        ([b"Bearer " + middleware.fingerprint(TOKEN).encode()], False),
    ],
)
def test_admits(headers: list[bytes], admitted: bool) -> None:
    assert middleware.admits(middleware.fingerprint(TOKEN), headers) is admitted


async def chunks(count: int, size: int, seen: list[int]) -> AsyncIterator[bytes]:
    for _ in range(count):
        seen.append(size)
        yield b"x" * size


async def _read(count: int, size: int, most: int) -> int:
    seen: list[int] = []
    with pytest.raises(limits.RequestError, match="larger than"):
        await limits.read_body(chunks(count, size, seen), most)
    return sum(seen)


def test_reading_stops_at_the_limit() -> None:
    import asyncio

    assert asyncio.run(_read(1000, 1000, 5000)) == 6000
    assert asyncio.run(_read(10**6, 1, 5000)) == 5001


def test_shape_counts_no_brackets_or_commas_of_strings() -> None:
    limits.check_shape(b'{"a\\"[[[[": "[[[[,,,,", "b": [1]}', 2, 2)
    with pytest.raises(limits.RequestError, match="deeper than the 1 levels"):
        limits.check_shape(b'{"a": [1]}', 1, 9)
    with pytest.raises(limits.RequestError, match="found 3 values, allowed are 2"):
        limits.check_shape(b"[1,2,3]", 2, 2)


HOSTILE_BODIES = """
import contextlib
from hourglass.serving import limits

pieces = [("", "["), ("", '"'), ("", '\\\\"'), ("", '"\\\\'), ('"', "\\\\\\\\"), ("", ","), ('{"', "a")]
for start, piece in pieces:
    body = (start + piece * (2**23 // len(piece))).encode()
    with contextlib.suppress(limits.RequestError):
        limits.check_shape(body, 16, 1000)
print("done")
"""


def test_shape_is_linear_on_hostile_bodies() -> None:
    """Quadratic work on 8 MiB would take hours; the limit only tells it from linear work."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE_BODIES], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "done\n", done.stderr


def test_shape_refuses_what_costs_the_parser_memory() -> None:
    """Negative control: the parser alone makes a hundred bytes of objects per byte of body."""
    body = b"[" + b"[]," * 1000 + b"[]]"
    assert len(json.loads(body)) == 1001
    with pytest.raises(limits.RequestError):
        limits.check_shape(body, 16, 1000)
