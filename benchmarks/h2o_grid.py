"""One of h2o's grids on MNIST, timed: the other side of h2o_race.py, which starts it.

Runs in a Python of its own that has h2o and nothing of ours. Starts a server on loopback with all
cores, imports the training rows, runs the grid, scores the test rows with `anomaly()` and prints one
JSON document; h2o's own words go to stderr.

    python benchmarks/h2o_grid.py architecture|sparsity TRAIN.csv TEST.csv FOLDER [--epochs N] ...

FOLDER gets the server's files and `reconstruction.csv`, h2o's output for the first test rows by the
first model: with it the caller checks that it understands h2o's error.
"""

import time

STARTED = time.perf_counter()  # the client's import is part of starting h2o

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ["DO_NOT_TRACK"] = "1"  # its client reports each start and each scoring otherwise

import h2o  # noqa: E402
from h2o.estimators import H2OAutoEncoderEstimator  # noqa: E402
from h2o.grid import H2OGridSearch  # noqa: E402

FIXED = {"activation": "Tanh", "sparse": True, "ignore_const_cols": False, "seed": 123}
GRIDS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "architecture": (
        {},
        {"hidden": [[50], [100], [300, 100, 300], [100, 50, 100], [250, 100, 50, 100, 250]]},
    ),
    "sparsity": (
        {"hidden": [100], "average_activation": -0.1},
        {"sparsity_beta": [0.01, 0.05, 0.1, 0.2]},
    ),
}
"""What stays and what varies: the book's grids."""
CHECKED = 200
"""Test rows whose reconstruction is written down."""


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def column(frame: Any) -> list[float]:
    """A frame of one column as numbers."""
    return [float(cell) for cell in frame.get_frame_data().splitlines()[1:]]


def epochs_of(model: Any) -> float:
    """Epochs that the model was trained for, by its own record; it may stop early."""
    history = model._model_json["output"]["scoring_history"]
    place = history.col_header.index("epochs")
    return max(float(row[place]) for row in history.cell_values if row[place] not in ("", None))


def described(model: Any, varied: list[str], test: Any) -> dict[str, Any]:
    """What a model is, what it took, and its error on the test rows."""
    errors = column(model.anomaly(test))
    codes = len(model.actual_params["hidden"]) // 2  # the layer in the middle
    activations = model.deepfeatures(test, codes).mean()
    return {
        "values": {name: model.actual_params[name] for name in varied},
        "seconds": model._model_json["output"]["run_time"] / 1e3,
        "epochs": epochs_of(model),
        "train_mse": model.mse(),
        "test_mse": sum(errors) / len(errors),
        "mean_activation": sum(activations) / len(activations),
        "first_errors": errors[:CHECKED],
    }


def main() -> None:
    """Time the grid, then judge its models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=list(GRIDS))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument(
        "--no-assertions", action="store_true", help="the client's default has them"
    )
    asked = parser.parse_args()
    # An exit, not a death: the server is a process of its own and would stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(asked)
    print(json.dumps(result))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The seconds of each step until the grid is done, and each of its models."""
    fixed, varied = GRIDS[asked.grid]
    # A bare port would first look for a server there; `name` keeps it out of anybody's cloud.
    h2o.init(
        port=free_port(),
        name=f"race-{os.getpid()}",
        nthreads=-1,
        bind_to_localhost=True,
        enable_assertions=not asked.no_assertions,
        ice_root=str(asked.folder),
        log_dir=str(asked.folder),
        ignore_config=True,
    )
    try:
        started = time.perf_counter()
        h2o.no_progress()
        train = h2o.import_file(str(asked.train), header=1)
        imported = time.perf_counter()
        estimator = H2OAutoEncoderEstimator(**FIXED, **fixed, epochs=asked.epochs)
        grid = H2OGridSearch(estimator, hyper_params=varied)
        grid.train(x=train.columns, training_frame=train)
        ended = time.perf_counter()
        wanted = len(next(iter(varied.values())))
        if len(grid.models) != wanted:
            raise SystemExit(f"h2o trained {len(grid.models)} of {wanted} models")
        test = h2o.import_file(str(asked.test), header=1)
        models = {model.model_id: model for model in grid.models}
        found = [described(model, list(varied), test) for model in models.values()]
        first = next(iter(models.values()))
        output = first.predict(test[:CHECKED, :]).get_frame_data()
        (asked.folder / "reconstruction.csv").write_text(output)
        return {
            "version": h2o.__version__,
            "java_assertions": not asked.no_assertions,
            "cores": sum(node["num_cpus"] for node in h2o.cluster().nodes),
            "threads": sum(node["cpus_allowed"] for node in h2o.cluster().nodes),
            "seconds": {
                "start": started - STARTED,
                "import": imported - started,
                "grid": ended - imported,
                "all": ended - STARTED,
            },
            "models": found,
        }
    finally:
        h2o.cluster().shutdown()


if __name__ == "__main__":
    main()
