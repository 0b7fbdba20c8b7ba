"""Machines, workers and drivers that are killed while a run trains on two machines.

Each run ends with the bits of the undisturbed one. HOURGLASS_KILLS is the number of kills of each kind.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "ray"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from cluster_kit import write_shards
from machines_kit import HOURGLASS, Machine, machines, require_namespaces

require_namespaces()
pytestmark = pytest.mark.nightly

KILLS = int(os.environ.get("HOURGLASS_KILLS", "2"))
JOB: dict[str, Any] = {
    "kind": "train",
    "data": {"features": {"vector": "x"}},
    "model": {
        "network": {"kind": "dense", "widths": [16, 4], "dropout": 0.1},
        "corruption": {"kind": "gaussian", "sd": 0.1},
    },
    "train": {"epochs": 400, "batch_size": 32, "checkpoint_every_steps": 5},
    "scale": {"workers": 2, "cpus_per_worker": 1.5, "max_failures": 9},
}


class Pair:
    """A head, another machine, and runs on both, in a folder that both see."""

    def __init__(self, head: Machine, other: Machine) -> None:
        self.head, self.other = head, other
        self.rows = head.folder.parent / "rows"
        self.rows.mkdir()
        write_shards(self.rows)
        done = head.run("cluster", "start", "--host", head.ip, "--cpus", "2")
        assert done.returncode == 0, done.stderr
        other.home.mkdir(0o700)
        shutil.copy(head.home / "ray_token", other.home)
        self.join()

    def join(self) -> None:
        """Let the other machine join, again if it was lost."""
        done = self.other.run("cluster", "join", f"{self.head.ip}:6379", "--cpus", "2")
        assert done.returncode == 0, done.stderr

    def start(self, name: str) -> "subprocess.Popen[str]":
        file = self.head.folder / f"{name}.yaml"
        data = {**JOB["data"], "uri": str(self.rows)}
        file.write_text(yaml.safe_dump({**JOB, "name": name, "data": data}))
        shared = {"HOURGLASS_ADDRESS": f"{self.head.ip}:6379"}
        shared |= {"HOURGLASS_RUNS": str(self.head.folder.parent / "runs")}
        return self.head.start(*HOURGLASS, "train", str(file), **shared)

    def files(self, output: str) -> dict[str, str]:
        """SHA-256 of the weights and reference outputs of a finished run."""
        (folder,) = re.findall(r"^artifact +(\S+)", output, re.MULTILINE)
        files = json.loads((Path(folder) / "manifest.json").read_text())["files"]
        return {name: record["sha256"] for name, record in files.items()}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with machines(2) as (head, other):
        yield Pair(head, other)


@pytest.fixture(scope="module")
def undisturbed(pair: Pair) -> tuple[dict[str, str], float]:
    """The files of a run that nobody disturbs, and its seconds."""
    began = time.monotonic()
    output, _ = pair.start("undisturbed").communicate(timeout=300)
    return pair.files(output), time.monotonic() - began


def _first_epoch(run: "subprocess.Popen[str]") -> list[str]:
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("epoch"):
            return lines
    raise AssertionError("".join(lines))


def _worker(pair: Pair, run: "subprocess.Popen[str]", chance: random.Random) -> bool:
    found = [
        process
        for machine in (pair.head, pair.other)
        for process in machine.processes()
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    chance.choice(found).kill()
    return False


def _machine(pair: Pair, run: "subprocess.Popen[str]", chance: random.Random) -> bool:
    pair.other.kill()
    pair.join()
    return False


def _driver(pair: Pair, run: "subprocess.Popen[str]", chance: random.Random) -> bool:
    """The same command is repeated."""
    for process in pair.head.processes():
        if "hourglass.cli train" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
    return True


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("kill", [_worker, _machine, _driver], ids=lambda kill: kill.__name__[1:])
def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(
    pair: Pair, undisturbed: tuple[dict[str, str], float], kill: Callable[..., bool], number: int
) -> None:
    expected, seconds = undisturbed
    chance = random.Random(100 * number + len(kill.__name__))
    name = f"{kill.__name__[1:]}-{number}"
    run = pair.start(name)
    lines = _first_epoch(run)
    time.sleep(chance.uniform(0.0, 2.0))
    killed = time.monotonic()
    again = kill(pair, run, chance)
    output = "".join([*lines, run.communicate(timeout=300)[0]])
    if again:
        assert "artifact" not in output
        output, _ = pair.start(name).communicate(timeout=300)
    assert run.returncode == (-9 if again else 0) or again, output
    print(
        f"{name}: ended {time.monotonic() - killed:.1f} s after the kill; undisturbed {seconds:.1f}"
    )
    assert pair.files(output) == expected
