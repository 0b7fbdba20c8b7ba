"""The image is reproducible from the repository: a base by digest, every wheel by hash, one build context."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "Containerfile").read_text()
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\$", flags=re.M)
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def instructions(text: str) -> list[str]:
    """The instructions of a Containerfile, each on one line, without comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def mistakes(text: str) -> Iterator[str]:
    """What makes an image depend on more than the repository and its base."""
    stages: set[str] = set()
    for line in instructions(text):
        words = line.split()
        if words[0] == "FROM":
            if words[1] not in {"${BASE_IMAGE}", *stages}:
                yield f"base {words[1]} is no argument"
            stages.add(words[3])
        if re.match(r"ARG BASE_IMAGE=", line):
            yield "the base has a default"
        for install in re.findall(r"pip install [^&|]*", line):
            if "--no-deps" not in install:
                yield f"resolves dependencies: {install.strip()}"
            local = install.strip().endswith(" .")
            if "--require-hashes" not in install and not local:
                yield f"no hashes: {install.strip()}"
            if local and "--no-build-isolation" not in install:
                yield f"downloads a build backend: {install.strip()}"


def test_the_image_has_its_base_by_digest_and_its_wheels_by_hash() -> None:
    assert list(mistakes(CONTAINERFILE)) == []
    assert "ARG BASE_IMAGE\n" in CONTAINERFILE
    assert "grep -Eq '@sha256:[0-9a-f]{64}$'" in CONTAINERFILE
    assert {"cpu", "gpu"} <= set(re.findall(r"^FROM runtime AS (\w+)$", CONTAINERFILE, flags=re.M))


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("FROM ${BASE_IMAGE}", "FROM python:3.11", "base python:3.11 is no argument"),
        ("ARG BASE_IMAGE\n", "ARG BASE_IMAGE=python:3.11\n", "the base has a default"),
        ("--require-hashes ", "", "no hashes: pip install --no-deps --requirement"),
        ("--no-deps ", "", "resolves dependencies: pip install --require-hashes --requirement"),
        ("--no-build-isolation ", "", "downloads a build backend: pip install --no-deps ."),
    ],
)
def test_a_planted_mistake_is_caught(old: str, new: str, mistake: str) -> None:
    assert old in CONTAINERFILE
    found = list(mistakes(CONTAINERFILE.replace(old, new)))
    assert any(text.startswith(mistake) for text in found), found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_wheel_of_a_lock_has_hashes(path: Path) -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", path.read_text().strip())
    for block in blocks:
        pin, *hashes = block.splitlines()
        assert PIN.match(pin), pin
        assert hashes, f"{pin} has no hash"
        assert all(HASH.fullmatch(line) for line in hashes), block


def pins(*names: str) -> dict[str, str]:
    """The versions in locks, without local labels such as +cpu."""
    texts = [(ROOT / "locks" / f"{name}.txt").read_text() for name in names]
    return {
        name: version.partition("+")[0] for text in texts for name, version in PIN.findall(text)
    }


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_locks_have_the_versions_that_are_tested_and_all_dependencies(target: str) -> None:
    locked = pins("common", f"torch-{target}")
    tested = dict(re.findall(r"^([^=\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in tested.items()}
    assert {name: (found, tested[name]) for name, found in locked.items() if name in tested} == {
        name: (tested[name], tested[name]) for name in locked if name in tested
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["server"]
    names = {re.split(r"[\[<>=~; ]", item)[0].lower().replace("_", "-") for item in wanted}
    assert names - locked.keys() == set()
    assert "setuptools" in locked  # builds our wheel without isolation


def test_the_build_context_has_what_is_copied_and_nothing_else() -> None:
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for line in instructions(CONTAINERFILE)
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    }
    assert {re.sub(r"^locks/.*", "locks", source) for source in copied} == admitted
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("script", ["image", "lock", "run"])
def test_scripts_of_ci_are_valid(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / script)], check=True)
