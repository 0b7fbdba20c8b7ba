"""The README's commands, run in their order in a copy of what a newcomer has after `make`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MNIST = ROOT.parent / "shared" / "data" / "mnist"
STAYING = ("hourglass serve", "hourglass ui")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


class Shell:
    """Runs commands in one folder; those that stay are started, awaited and stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staying: list[subprocess.Popen[str]] = []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOURGLASS_", "MLFLOW_"))}
        self.env = {**kept, "PATH": path, "MNIST": str(MNIST), "PYTHONUNBUFFERED": "1"}

    def run(self, command: str) -> str:
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.env,
            text=True,
            capture_output=True,
            timeout=560,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    def stay(self, command: str, until: str) -> None:
        log = self.folder / f"{command.split()[1]}.log"
        with log.open("w") as output:
            self.staying.append(
                subprocess.Popen(
                    command.split(),
                    cwd=self.folder,
                    env=self.env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        end = time.monotonic() + 120
        while until not in log.read_text():
            assert self.staying[-1].poll() is None, log.read_text()
            assert time.monotonic() < end, f"{command}: no '{until}' in\n{log.read_text()}"
            time.sleep(0.3)

    def leave(self) -> list[int]:
        codes = []
        for process in reversed(self.staying):
            process.send_signal(signal.SIGINT)
            codes.append(process.wait(60))
        self.staying.clear()
        return codes


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("jobs", "serve", "tune_spaces"):
        shutil.copytree(ROOT / name, folder / name)
    (yaml,) = [block for block in blocks("yaml") if block.startswith("# my.yaml")]
    (folder / "my.yaml").write_text(yaml)
    shell = Shell(folder)
    yield shell
    shell.leave()
    shell.run("hourglass cluster stop")


def test_make_targets_are_what_they_claim() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert commands()[:2] == ["make demo", "make test"]
    assert re.search(r"^demo: .*\n\t\$\(BIN\)/hourglass demo$", makefile, flags=re.M)
    suite = r"^test: .*\n\t.*-m pytest -n 3 --no-loadscope-reorder -m \"not nightly\"$"
    assert re.search(suite, makefile, flags=re.M)


def test_the_yaml_is_twelve_lines() -> None:
    (yaml,) = [block for block in blocks("yaml") if block.startswith("# my.yaml")]
    assert len([line for line in yaml.splitlines() if not line.startswith("#")]) <= 12


def test_the_demo(shell: Shell) -> None:
    printed = shell.run("hourglass demo")
    mse, pca = map(float, re.findall(r"(?:MSE|components) (0\.\d+)", printed)[:2])
    assert mse < 0.02 < pca
    assert "most anomalous rows" in printed
    assert "POST http://127.0.0.1:" in printed
    assert "-> 200, version 1" in printed


def test_the_other_commands(shell: Shell) -> None:
    """Everything after the demo and before the MNIST section, in order."""
    ours = [
        line for line in commands() if not line.startswith(("make ", ". ")) and "$MNIST" not in line
    ]
    ours = [line for line in ours if "promote mnist" not in line]
    printed = {}
    for command in ours:
        if command.startswith(STAYING):
            shell.stay(command, "ready" if "serve" in command else "http://127.0.0.1:5000")
        else:
            printed[command] = shell.run(command)
    assert shell.leave() == [0, 0]
    train = printed["hourglass train my.yaml"]
    assert "registered   mine version 1" in train
    assert float(re.findall(r"holdout_mse +(0\.\d+)", train)[0]) < 0.04
    assert (
        "1797 scored, 0 dropped"
        in printed["hourglass score jobs/digits/score.yaml --set output=scores/digits"]
    )
    board = printed["hourglass leaderboard denoising"]
    assert "denoising, by holdout_mse" in board
    tuned = printed["hourglass tune tune_spaces/denoising.yaml --set max_trials=4"]
    assert f"{board}recorded in MLflow (" in tuned
    assert tuned.endswith(f"written to {shell.folder / '.hourglass' / 'runs' / 'denoising'}\n")
    answer = next(text for command, text in printed.items() if "anomaly -d @rows.json" in command)
    assert '"is_anomaly":[' in answer.replace(" ", "")
    rendered = printed["hourglass render my.yaml --set data.uri=s3://bucket/rows"]
    assert "kind: RayJob" in rendered


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's shards are not beside the repository")
def test_mnist_reaches_its_figure(shell: Shell) -> None:
    """The README's MNIST commands; test MSE in range space at most 0.0036 with tanh."""
    ours = [line for line in commands() if "$MNIST" in line or "promote mnist" in line]
    assert len(ours) == 3
    printed = [shell.run(command) for command in ours]
    assert "10000 scored" in printed[-1]
    assert float(re.findall(r"(0\.\d+) in range space", printed[-1])[0]) <= 0.0036
