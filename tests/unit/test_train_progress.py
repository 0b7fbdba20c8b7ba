"""What a run says of its rows and workers before its first epoch."""

import io

import pytest
from rich.console import Console

from hourglass.job_files import parse
from hourglass.progress import Bar, TrainProgress
from hourglass.spec import TrainJob

DATASET = {
    "rows": 10,
    "shards": 2,
    "train_rows": 7,
    "holdout_rows": 2,
    "dropped_rows": 1,
    "imputed_cells": 0,
    "constant_columns": 0,
}


@pytest.mark.parametrize(
    ("workers", "cached", "said"),
    [
        (1, True, "rows cached in memory; 1 worker takes some seconds to start"),
        (2, False, "rows streamed; 2 workers take some seconds to start"),
    ],
)
def test_a_run_tells_its_rows_and_workers(workers: int, cached: bool, said: str) -> None:
    job = parse(
        {
            "kind": "train",
            "data": {"uri": "/rows", "features": {"vector": "x"}},
            "model": {"network": {"kind": "dense", "widths": [3]}},
            "scale": {"workers": workers},
        }
    )
    assert isinstance(job, TrainJob)
    text = io.StringIO()
    TrainProgress(Bar(Console(file=text, soft_wrap=True), None, "epoch")).prepared(
        job, {**DATASET, "cached": cached}
    )
    assert text.getvalue().splitlines() == [
        "10 rows in 2 shards: 7 to train on, 2 held out, 1 dropped, 0 cells imputed",
        said,
    ]
