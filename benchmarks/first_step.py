"""From the command to the first epoch: `hourglass train` beside the floor that Ray itself sets.

The floor is a script that starts a local cluster and a TorchTrainer of one worker whose function
imports torch and returns: no rows, no model, no checkpoint, no registry. Both as processes of their
own, in turns; ours trains one small epoch on 1,000 rows.

    python benchmarks/first_step.py [TURNS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FLOOR = """
import ray
from hourglass.cluster.connect import connection
with connection():
    print("MARK cluster", flush=True)
    import ray.train
    from ray.train.torch import TorchTrainer
    def work():
        import torch
    scaling = ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1})
    run = ray.train.RunConfig(storage_path=STORE)
    TorchTrainer(work, scaling_config=scaling, run_config=run).fit()
    print("MARK end", flush=True)
"""
JOB = """
kind: train
name: first
data: {{uri: {uri}, features: {{vector: x}}}}
model: {{network: {{kind: dense, widths: [8, 3]}}}}
train: {{epochs: 1, batch_size: 100}}
scale: {{workers: 1}}
"""
MARKS = {"rows in": "rows read and counted", "epoch 1/1": "first epoch", "MARK end": "end"}


def watch(command: list[str], home: Path) -> dict[str, float]:
    """Seconds from the start of `command` to each mark in what it prints, and to its end."""
    environment = {**os.environ, "HOURGLASS_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    seen: dict[str, float] = {}
    assert process.stdout is not None
    for line in process.stdout:
        for mark, name in MARKS.items():
            if mark in line:
                seen.setdefault(name, time.perf_counter() - started)
    assert process.wait() == 0
    return {**seen, "process": time.perf_counter() - started}


def main(turns: int) -> None:
    """Take turns, print the medians, keep them."""
    ours: list[dict[str, float]] = []
    floor: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="hgf", dir="/tmp") as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        values = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 16)})
        pq.write_table(table, folder / "rows" / "part-0.parquet", write_page_checksum=True)
        (folder / "job.yaml").write_text(JOB.format(uri=folder / "rows"))
        (folder / "floor.py").write_text(FLOOR.replace("STORE", repr(str(folder / "store"))))
        hourglass = [sys.executable, "-m", "hourglass.cli", "train", str(folder / "job.yaml")]
        for _ in range(turns):
            ours.append(watch([*hourglass, "--fresh"], folder / "home"))
            floor.append(watch([sys.executable, str(folder / "floor.py")], folder / "home"))
    figures = {
        side: {n: round(statistics.median(t[n] for t in taken), 1) for n in taken[0]}
        for side, taken in (("hourglass", ours), ("ray_alone", floor))
    }
    result = {
        "what": "seconds from the command, medians; one worker, 1,000 rows of 16",
        "turns": turns,
        **figures,
        "ratio": round(figures["hourglass"]["first epoch"] / figures["ray_alone"]["end"], 2),
    }
    text = json.dumps(result, indent=1)
    Path(__file__).with_name("results").joinpath("first_step.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
