"""Ctrl-C and SIGTERM at real commands: a message, an exit code, nothing left, and it goes on later."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.util
import yaml
from ray.util.placement_group import placement_group

from hourglass import artifact, ray_internals
from hourglass.config.files import dump, parse
from hourglass.config.train import TrainJob
from hourglass.training.launch import free

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from cluster_kit import in_process, processes
from sweep_kit import job as sweep
from training_kit import same_bits

AS_FOREGROUND = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'hourglass.cli', *sys.argv[1:]])"
)
CTRL_C = b"\x03"
RESUMES = "interrupted; the same command resumes"


class Terminal:
    """`hourglass` in the foreground of a terminal of its own."""

    def __init__(self, command: Sequence[object], environment: dict[str, str]) -> None:
        self.screen = ""
        self.keys, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AS_FOREGROUND, *map(str, command)],
            env=environment,
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
        os.close(inside)
        self.family: set[psutil.Process] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                shown = os.read(self.keys, 65536)
            except OSError:  # Linux says so when nobody has the terminal any more
                return
            self.screen += shown.decode(errors="replace")

    def wait_for(self, there: Callable[[], Any], seconds: float = 90) -> None:
        """Until something is there."""
        end = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.screen[-2000:]
            assert time.monotonic() < end, self.screen[-2000:]
            time.sleep(0.02)
        self.family |= {*psutil.Process(self.process.pid).children(recursive=True)}

    def end(self) -> tuple[int, str]:
        """Its exit code and the last line on its screen."""
        code = self.process.wait(60)
        self._reader.join(10)
        os.close(self.keys)
        lines = [line for line in re.split(r"[\r\n]+", self.screen) if line.strip()]
        return code, re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\^C", "", lines[-1])


@pytest.fixture
def own() -> Iterator[Path]:
    """A project folder for a command with a cluster of its own."""
    folder = Path(tempfile.mkdtemp(prefix="hgi", dir="/tmp"))  # short: Ray makes sockets below
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a command: no cluster but the one it is told."""
    ours = ("RAY_", "HOURGLASS_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"HOURGLASS_HOME": str(home), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture
def joined(home: Path) -> dict[str, str]:
    """The environment of a command that uses the cluster of this module."""
    return environment(home / "home", HOURGLASS_ADDRESS=ray.get_runtime_context().gcs_address)


def commits(runs: Path) -> list[Path]:
    """Checkpoints of a run or of a sweep's trials."""
    return list(runs.glob("**/checkpoints/*/COMMIT.json"))


def alive(family: set[psutil.Process]) -> list[psutil.Process]:
    """Those of a command's processes that are there 10 s after it."""
    _, left = psutil.wait_procs(family, timeout=10)
    return left


def assert_the_cluster_is_free() -> None:
    """Nobody holds a CPU, no process of ours is left, and nothing is reserved."""
    titles = ("ray::ImplicitFunc", "ray::RayTrainWorker", "ray::MapWorker", "ray::EventChannel")

    def held() -> list[Any]:
        groups = ray.util.placement_group_table().values()
        reserved = [group for group in groups if group["state"] != "REMOVED"]
        running = [title for title in titles if processes(title)]
        free = ray.available_resources().get("CPU") == 2.0
        return [*reserved, *running, *([] if free else ["CPU"])]

    end = time.monotonic() + 15
    while held() and time.monotonic() < end:
        time.sleep(0.1)
    assert held() == []


def test_ctrl_c_in_train_leaves_nothing_and_the_same_command_resumes_to_the_same_bits(
    home: Path, shards: Path, own: Path, joined: dict[str, str]
) -> None:
    """Pressed twice: the second one while the first is obeyed."""
    made = parse(
        {
            "kind": "train",
            "name": "small",
            "data": {"uri": str(shards), "features": {"vector": "x"}},
            "model": {
                "network": {"kind": "dense", "widths": [6, 3], "activation": "tanh"},
                "corruption": {"kind": "gaussian", "sd": 0.05},
            },
            "train": {"epochs": 150, "batch_size": 48, "seed": 3},
            "scale": {"workers": 1, "cpus_per_worker": 1},
        }
    )
    assert isinstance(made, TrainJob)
    file, runs = own / "train.yaml", own / "home" / "runs"
    file.write_text(yaml.safe_dump(dump(made)))
    terminal = Terminal(
        ["train", file], environment(own / "home", HOURGLASS_TEMP_DIR=str(own / "r"))
    )
    terminal.wait_for(lambda: commits(runs))
    assert len(terminal.family) > 5  # Ray's, and ours
    os.write(terminal.keys, CTRL_C)
    time.sleep(0.5)
    os.write(terminal.keys, CTRL_C)
    assert terminal.end() == (130, RESUMES), terminal.screen[-2000:]
    assert "Traceback" not in terminal.screen
    assert alive(terminal.family) == []
    assert commits(runs)
    assert not list(runs.glob("*/artifact"))

    joined |= {"HOURGLASS_RUNS": str(runs)}
    done = subprocess.run(
        [sys.executable, "-m", "hourglass.cli", "train", str(file)],
        env=joined,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "\nresumed at step " in done.stdout
    (folder,) = runs.glob("*/artifact")
    alone = in_process(made, shards)
    alone.fit()
    assert same_bits(
        {
            name: value.numpy()
            for name, value in artifact.load(str(folder)).module.state_dict().items()
        },
        {name: value.numpy() for name, value in alone.state.module.state_dict().items()},
    )


def test_ctrl_c_in_tune_leaves_nothing_on_a_cluster_that_goes_on(
    home: Path, shards: Path, own: Path, joined: dict[str, str]
) -> None:
    """Not the workers of a trial either, nor what they reserved."""
    rates = {"train.optimizer.lr": {"grid": [0.01, 0.02]}}
    made = sweep(shards, rates, workers_per_trial=2, train={"epochs": 4000})
    file = own / "grid.yaml"
    file.write_text(yaml.safe_dump(dump(made)))
    terminal = Terminal(["tune", file], joined | {"HOURGLASS_RUNS": str(own / "runs")})
    terminal.wait_for(lambda: commits(own / "runs"))
    assert len(processes("ray::RayTrainWorker")) == 2
    os.write(terminal.keys, CTRL_C)
    assert terminal.end() == (130, RESUMES), terminal.screen[-2000:]
    assert "Traceback" not in terminal.screen
    assert alive(terminal.family) == []
    assert_the_cluster_is_free()
    assert commits(own / "runs")


def test_sigterm_in_score_leaves_nothing_on_a_cluster_that_goes_on(
    home: Path, own: Path, joined: dict[str, str], save_artifact: Callable[..., str]
) -> None:
    save_artifact(own / "model")
    (own / "rows").mkdir()
    rows = np.random.default_rng(0).normal(3.0, 2.0, (100_000, 12)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 12)
    for shard in range(8):
        pq.write_table(pa.table({"image": vectors}), own / "rows" / f"s{shard}.parquet")
    file = own / "score.yaml"
    file.write_text(
        f"{{kind: score, model: {own / 'model'}, uri: {own / 'rows'}, output: {own / 'scores'}}}"
    )
    terminal = Terminal(["score", file], joined)
    terminal.wait_for(lambda: processes("ray::MapWorker"))
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == (143, RESUMES), terminal.screen[-2000:]
    assert "Traceback" not in terminal.screen
    assert not (own / "scores" / "_COMMIT.json").exists()
    assert_the_cluster_is_free()


def test_only_groups_that_actors_of_this_job_made_are_found(joined: dict[str, str]) -> None:
    """Those of a script that calls hourglass are its own: the control is a group of this process."""

    @ray.remote(num_cpus=0)
    class Controller:
        def reserve(self) -> str:
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return str(group.id.hex())

    before = ray_internals.placement_groups_of_actors()
    own = placement_group([{"CPU": 1}])
    try:
        ray.get(own.ready())
        controller = Controller.remote()
        made = ray.get(controller.reserve.remote())
        assert ray_internals.placement_groups_of_actors() - before == {made}
        free([made])
        states = {key: group["state"] for key, group in ray.util.placement_group_table().items()}
        assert (states[made], states[own.id.hex()]) == ("REMOVED", "CREATED")
    finally:
        free([own.id.hex()])
    ray.kill(controller)
    assert_the_cluster_is_free()
