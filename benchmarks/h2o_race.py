"""h2o's grids on MNIST and ours, one after the other on the same cores: seconds, and error on test rows.

    python benchmarks/h2o_race.py MNIST [--grid architecture|sparsity|both] [--h2o-python PYTHON]

MNIST is a folder with `train` and `test`, Parquet with the column `image`. h2o comes from PyPI in a
virtual environment of its own, made once below the system's temporary folder, or is what PYTHON has; it
needs Java 17 (Debian's openjdk-17-jre-headless). Without either there is nothing to race: a message,
and exit code 0.

Both sides get all cores, the same rows and as many epochs. h2o's seconds run from the import of its
client to the end of the grid (h2o_grid.py), ours from the start of the command `hourglass tune` to its
end, whatever the shipped space tries beside h2o's models: the best trial of a network on held-out rows
is the one that counts. Scoring is timed on neither side.

The error is h2o's: mean of ((x - mean) / (max - min))^2 over all columns, of the figures of all training
rows, a column without spread being divided by 1. h2o's is what `anomaly()` says of each test row, and
that it follows this formula is checked on its own reconstruction; ours is the formula on what the
artifact reconstructs.

`--rows N --epochs 1` tries it out; only a whole run is kept, in results/h2o_race.json.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import yaml

from hourglass.cluster.tokens import private_folder
from hourglass.inference.predictor import Predictor

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name("results") / "h2o_race.json"
GRIDS = ("architecture", "sparsity")
WIDTHS, RATE, BETA = "model.network.widths", "train.optimizer.lr", "model.penalties.0.beta"
EPOCHS = 10
TARGET, AIM = 10.0, 15.0
"""h2o's seconds over ours: at least, and hoped for."""
QUOTED = {"plain PyTorch, one thread, the five": 83.0, "h2o, the five": 965.0}
"""Seconds of another day on two shared cores, which this run does not repeat."""
AGREED = 1e-6
"""Largest relative difference between the formula and what h2o says of a row."""
Array = np.ndarray


class Data(NamedTuple):
    """Both sides' rows: ours as shards, h2o's as CSV."""

    shards: Path
    train_csv: Path
    test_csv: Path
    test: Array
    span: Array
    idle_error: float


class Side(NamedTuple):
    """What a process said on stdout, and its seconds from start to end."""

    printed: str
    seconds: float


def read(folder: Path) -> Array:
    """The images of a folder (B, C)."""
    column = pq.read_table(folder, columns=["image"])["image"].combine_chunks()
    images: Array = column.flatten().to_numpy().reshape(len(column), -1)
    return images


def prepared(mnist: Path, rows: int | None, work: Path) -> Data:
    """MNIST, or its first `rows` training rows and as many test rows, for both sides."""
    train, test = read(mnist / "train")[:rows], read(mnist / "test")[:rows]
    shards = mnist.absolute() / "train"
    if rows is not None:
        shards = work / "shards"
        shards.mkdir()
        images = pa.FixedSizeListArray.from_arrays(pa.array(train.reshape(-1)), train.shape[1])
        file = shards / "part-0.parquet"
        pq.write_table(pa.table({"image": images}), file, write_page_checksum=True)
    for name, split in (("train", train), ("test", test)):
        columns = {f"p{i}": split[:, i] for i in range(split.shape[1])}
        pa_csv.write_csv(pa.table(columns), work / f"{name}.csv")
    low, high = train.min(axis=0).astype(float), train.max(axis=0).astype(float)
    idle = low == high
    span = np.where(idle, 1.0, high - low)
    return Data(
        shards=shards,
        train_csv=work / "train.csv",
        test_csv=work / "test.csv",
        test=test,
        span=span,
        idle_error=float(np.square((test - low)[:, idle]).sum() / test.size),
    )


def range_errors(rows: Array, output: Array, span: Array) -> Array:
    """h2o's error of each row (B,): the means cancel, a mean over all columns."""
    errors: Array = np.square((rows - output.astype(float)) / span).mean(axis=1)
    return errors


def run(command: Sequence[str], environment: dict[str, str]) -> Side:
    """Run a command to its end. Exits with what it said last when it fails."""
    started = time.perf_counter()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            printed, aside = process.communicate()
        except BaseException:
            process.terminate()  # and not killed: each side has servers to end
            process.wait()
            raise
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{aside[-4000:]}")
    return Side(printed, seconds)


def h2o_python(named: str | None) -> str | None:
    """A Python with h2o, made when none is named; None, and a message, where that cannot be."""
    java = os.environ.get("JAVA_HOME", "")
    if not shutil.which("java") and not shutil.which(str(Path(java) / "bin" / "java")):
        print("no Java here (Debian: openjdk-17-jre-headless), so there is no h2o to race with")
        return None
    if named:
        return named
    folder = private_folder(Path(tempfile.gettempdir()) / f"hourglass-h2o-{os.getuid()}")
    python = folder / "venv" / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import h2o"], check=False).returncode:
        print(f"# installing h2o below {folder}", flush=True)
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(folder / "venv")],
            [str(python), "-m", "pip", "install", "-q", "h2o"],
        )
        if any(subprocess.run(step, check=False).returncode for step in steps):
            print("h2o could not be installed from PyPI, so there is no h2o to race with")
            return None
    return str(python)


def theirs(
    python: str, grid: str, data: Data, epochs: int, work: Path, options: Sequence[str]
) -> dict[str, Any]:
    """h2o's grid: its seconds and models. Exits when its error is not what we take it for."""
    folder = work / f"h2o-{grid}"
    folder.mkdir()
    script = str(Path(__file__).with_name("h2o_grid.py"))
    files = [str(data.train_csv), str(data.test_csv), str(folder)]
    command = [python, script, grid, *files, "--epochs", str(epochs), *options]
    side = run(command, dict(os.environ))
    found: dict[str, Any] = json.loads(side.printed)
    table = pa_csv.read_csv(folder / "reconstruction.csv")
    output = np.column_stack([column.to_numpy() for column in table.columns])
    first = np.array(found["models"][0]["first_errors"])
    formula = range_errors(data.test[: len(output)], output, data.span)
    off = float(np.abs(formula / first - 1).max())
    if off > AGREED:
        raise SystemExit(f"h2o's anomaly() is not the formula: {off:.2g} apart")
    for model in found["models"]:
        del model["first_errors"]
    return {**found, "formula_off": off}


def ours(
    grid: str, data: Data, epochs: int, work: Path, overrides: Sequence[str], rate: float | None
) -> dict[str, Any]:
    """Our sweep as a command in a fresh home: its seconds, and its trials, best first."""
    file = ROOT / "tune_spaces" / f"h2o_{grid}.yaml"
    home = Path(tempfile.mkdtemp(prefix="ours", dir=work))
    sets = [f"base.data.uri={data.shards}", f"base.train.epochs={epochs}", *overrides]
    if rate is not None:
        space = yaml.safe_load(file.read_text())["space"]
        # The whole space, since --set takes the dots of its keys for steps.
        sets.append(f"space={json.dumps({**space, RATE: {'grid': [rate]}})}")
    command = [sys.executable, "-m", "hourglass.cli", "tune", str(file), "--json"]
    for one in sets:
        command += ["--set", one]
    foreign = ("HOURGLASS_", "RAY_", "MLFLOW_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {"HOURGLASS_HOME": str(home), "HOURGLASS_TEMP_DIR": str(home / "ray")}
    side = run(command, environment)
    board = json.loads(side.printed)
    trials = home / "runs" / board["sweep"] / "trials"
    ended = [entry for entry in board["entries"] if entry["status"] == "finished"]
    return {
        "seconds": side.seconds,
        "set": sets[2:],
        "unfinished": len(board["entries"]) - len(ended),
        "trials": [
            {
                "values": entry["values"],
                "seconds": entry["seconds"],
                "holdout_mse": entry["holdout_mse"],
                **judged(trials / entry["trial"] / "artifact", data),
            }
            for entry in ended
        ],
    }


def judged(artifact: Path, data: Data) -> dict[str, Any]:
    """A trial's widths, its error in h2o's space and its mean activation, on the test rows."""
    predictor = Predictor.load(str(artifact))
    errors = range_errors(data.test, predictor.reconstruct(data.test), data.span)
    return {
        "widths": predictor.artifact.manifest.model.network.model_dump()["widths"],
        "test_mse": float(errors.mean()),
        "mean_activation": float(predictor.encode(data.test).mean()),
    }


def paired(grid: str, models: list[dict[str, Any]], trials: list[dict[str, Any]]) -> list[Any]:
    """h2o's models beside ours: of the same network the best on held-out rows; betas in their order."""
    if grid == "sparsity":
        models = sorted(models, key=lambda model: model["values"]["sparsity_beta"])
        trials = sorted(trials, key=lambda trial: trial["values"][BETA])
        if len(models) != len(trials):
            raise SystemExit(f"{len(trials)} of our betas ended beside {len(models)} of h2o's")
        return list(zip(models, trials, strict=True))
    best: dict[tuple[int, ...], dict[str, Any]] = {}
    for trial in trials:
        widths = trial["widths"]
        best.setdefault((*widths, *reversed(widths[:-1])), trial)
    lost = [m for m in models if tuple(m["values"]["hidden"]) not in best]
    if lost:
        raise SystemExit(f"none of our trials has the network {lost[0]['values']['hidden']}")
    models = sorted(models, key=lambda m: (len(m["values"]["hidden"]), m["values"]["hidden"]))
    return [(model, best[tuple(model["values"]["hidden"])]) for model in models]


def compared(grid: str, h2o: dict[str, Any], sweep: dict[str, Any]) -> dict[str, Any]:
    """Who won what."""
    pairs = paired(grid, h2o["models"], sweep["trials"])
    ratio = h2o["seconds"]["all"] / sweep["seconds"]
    return {
        "seconds_h2o": round(h2o["seconds"]["all"], 1),
        "seconds_ours": round(sweep["seconds"], 1),
        "trials_ours": len(sweep["trials"]) + sweep["unfinished"],
        "ratio": round(ratio, 2),
        "ratio_met": ratio >= TARGET,
        "ratio_hoped_for": ratio >= AIM,
        "won": sum(trial["test_mse"] < model["test_mse"] for model, trial in pairs),
        "of": len(pairs),
        "rows": [
            {
                "h2o": model["values"],
                "ours": trial["values"],
                "h2o_mse": model["test_mse"],
                "our_mse": trial["test_mse"],
                "h2o_mean_activation": model["mean_activation"],
                "our_mean_activation": trial["mean_activation"],
                "won": trial["test_mse"] < model["test_mse"],
            }
            for model, trial in pairs
        ],
    }


def table(grid: str, variant: str, result: dict[str, Any]) -> str:
    """A comparison as text."""
    sparse = grid == "sparsity"
    lines = [f"{grid}, ours {variant}: error on the test rows"]
    head = f"{'h2o':>28} {'ours':>34} {'h2o MSE':>9} {'our MSE':>9}  "
    lines.append(head + (f"{'mean activations':>18}" if sparse else ""))
    for row in result["rows"]:
        left, right = (
            " ".join(f"{k.rpartition('.')[2]} {v}" for k, v in row[side].items())
            for side in ("h2o", "ours")
        )
        means = f"{row['h2o_mean_activation']:9.4f} {row['our_mean_activation']:8.4f}"
        lines.append(
            f"{left:>28} {right:>34} {row['h2o_mse']:9.6f} {row['our_mse']:9.6f}  "
            f"{means + '  ' if sparse else ''}{'won' if row['won'] else 'LOST'}"
        )
    met = "met" if result["ratio_met"] else "NOT MET"
    lines.append(
        f"{result['won']} of {result['of']} won; h2o {result['seconds_h2o']:.0f} s, ours "
        f"{result['seconds_ours']:.0f} s for {result['trials_ours']} trials: {result['ratio']:.1f} "
        f"times as fast (target {TARGET:g}, {met}; hoped for {AIM:g})"
    )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What both sides ran on; other work shows in the load before the start."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray")},
        "java": java.splitlines()[0] if java else "from JAVA_HOME",
    }


def processor() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("mnist", type=Path, help="folder with train and test")
    parser.add_argument("--grid", choices=[*GRIDS, "both"], default="both")
    parser.add_argument("--h2o-python", metavar="PYTHON", help="a Python that has h2o")
    parser.add_argument(
        "--no-assertions", action="store_true", help="h2o's server without its assertions"
    )
    parser.add_argument("--rows", type=int, help="only the first rows: to try it out")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--rate", type=float, help="also run the architectures at this learning rate alone"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="for our sweeps, as theirs"
    )
    return parser.parse_args()


def race(asked: argparse.Namespace, python: str, grid: str, data: Data, work: Path) -> Any:
    """One grid: ours, at one rate too where asked, then h2o's."""
    facts = machine()
    variants: dict[str, float | None] = {"as shipped": None}
    if asked.set:
        variants = {f"with {' '.join(asked.set)}": None}
    if asked.rate is not None and grid == "architecture":
        variants[f"at the rate {asked.rate:g}"] = asked.rate
    sweeps = {}
    for name, rate in variants.items():
        sweeps[name] = ours(grid, data, asked.epochs, work, asked.set, rate)
        print(f"# {grid}, ours {name}: {sweeps[name]['seconds']:.0f} s", flush=True)
    options = ["--no-assertions"] if asked.no_assertions else []
    h2o = theirs(python, grid, data, asked.epochs, work, options)
    compare = {name: compared(grid, h2o, sweep) for name, sweep in sweeps.items()}
    for name, result in compare.items():
        print("\n" + table(grid, name, result) + "\n", flush=True)
    return {"machine": facts, "compared": compare, "h2o": h2o, "ours": sweeps}


def main() -> int:
    """Run the grids asked for; keep what whole runs measured, and before of the other grid."""
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    python = h2o_python(asked.h2o_python)
    if python is None:
        return 0
    result: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    # Ray's daemons may still write their last words when the command has ended.
    with tempfile.TemporaryDirectory(prefix="hgr", dir="/tmp", ignore_cleanup_errors=True) as name:
        work = Path(name)
        data = prepared(asked.mnist, asked.rows, work)
        result["what"] = (
            f"MNIST, epochs: {EPOCHS} (h2o stops early), all cores; error in h2o's range space over all "
            "columns, of the test rows; seconds with start-up and reading, without scoring"
        )
        # What nobody can learn: test pixels that no training row had, in their own units.
        result["in_both_errors_from_columns_without_spread"] = data.idle_error
        result["target"] = {"ratio": TARGET, "ratio_hoped_for": AIM, "won": "all"}
        result["quoted_not_run_here_s"] = QUOTED
        whole = asked.rows is None and asked.epochs == EPOCHS and not asked.set
        if not whole:
            print("# not the race: fewer rows, other epochs or another space; nothing is kept")
        for grid in GRIDS if asked.grid == "both" else (asked.grid,):
            result[grid] = race(asked, python, grid, data, work)
            if whole:
                KEPT.write_text(json.dumps(result, indent=1) + "\n")
        facts = " ".join(f"{k} {v};" for k, v in machine().items() if k != "load_before")
        print(
            f"{facts} {data.idle_error:.2g} of an error is of columns without spread, on both sides"
        )
        print("quoted, not run: " + ", ".join(f"{k} {v:.0f} s" for k, v in QUOTED.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
