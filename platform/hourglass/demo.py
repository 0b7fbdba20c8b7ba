"""Every step in one command, on real data: shards, training, registry, scoring, endpoints."""

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from hourglass import recipes, run
from hourglass.cluster import tokens
from hourglass.cluster.connect import connection
from hourglass.config import serve
from hourglass.config.files import load_kind
from hourglass.config.train import ScoreJob, TrainJob
from hourglass.data.dataset import Rows
from hourglass.data.demo import write_digits
from hourglass.data.manifest import scan
from hourglass.errors import RegistryError
from hourglass.inference.predictor import Predictor
from hourglass.process import free_port
from hourglass.progress import console
from hourglass.serving.run import deployed
from hourglass.settings import Settings
from hourglass.tracking import registry

SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class Found:
    """The results that the demo prints at its end."""

    holdout_mse: float
    pca_mse: float
    width: int
    endpoint_scores: NDArray[np.float64]
    scores: pa.Table


def demo(settings: Settings) -> None:
    """Write digits as shards, train, promote the model, score the shards, and call an endpoint.

    Raises: RegistryError, and the errors of the commands.
    """
    started = time.perf_counter()
    folder = settings.root / "demo"
    digits, output = str(folder / "digits"), str(folder / "scores")
    files = {kind: _named(recipes.find(kind)) for kind in ("train", "score", "serve")}
    train = load_kind(TrainJob, files["train"], [f"data.uri={digits}"])
    score = load_kind(ScoreJob, files["score"], [f"uri={digits}", f"output={output}"])
    say = console().print
    say(f"[bold]1 data[/]      {write_digits(digits)} digits as Parquet shards in {digits}")
    with connection(settings=settings):
        say(f"[bold]2 train[/]     hourglass train {files['train']}")
        trained = run.train(train, settings, fresh=True)
        version = trained.record.version
        if version is None:
            raise RegistryError(f"the model was not registered: {trained.record.note}")
        say(f"[bold]3 promote[/]   hourglass models promote digits {version}")
        registry.promote(settings, "digits", version)
        say(f"[bold]4 score[/]     hourglass score {files['score']}")
        run.score(score, settings, fresh=True)
        scores = _read(output)
        predictor = Predictor.load(trained.outcome.uri)
        say(f"[bold]5 serve[/]     hourglass serve {files['serve']}")
        answered = _call_endpoints(files["serve"], settings, _abnormal_images(scores, digits), say)
    found = Found(
        holdout_mse=trained.outcome.manifest.metrics["holdout_mse"],
        pca_mse=_pca_mse(train, predictor),
        width=predictor.code_width,
        endpoint_scores=answered,
        scores=scores,
    )
    _show(found, predictor, digits)
    say(f"artifact    {trained.outcome.uri}")
    say(f"scores      {output}")
    say("registry    hourglass models show digits   (in a browser: hourglass ui)")
    say(f"[bold green]done[/] in {time.perf_counter() - started:.0f} s")


def _named(file: Path) -> Path:
    """The path of a recipe, relative to the current folder if it is inside."""
    file = file.resolve()
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _read(output: str) -> pa.Table:
    """The scored rows, highest score first."""
    return pq.read_table(output).sort_by([("score", "descending")])


def _images(digits: str) -> NDArray[np.uint8]:
    table = pq.read_table(digits, columns=["image", "row_id"]).sort_by("row_id")
    flat = table.column("image").combine_chunks().flatten().to_numpy()
    return np.asarray(flat, dtype=np.uint8).reshape(-1, 64)


def _abnormal_images(scores: pa.Table, digits: str) -> NDArray[np.uint8]:
    abnormal: list[int] = scores.column("row_id").to_pylist()[:3]
    return _images(digits)[abnormal]


def _call_endpoints(
    file: Path, settings: Settings, rows: NDArray[np.uint8], say: Callable[..., None]
) -> NDArray[np.float64]:
    """Start the endpoints, request the anomaly scores of `rows` over HTTP, and stop them."""
    served = serve.load(file, [f"http_options.port={free_port()}"])
    path = settings.root / tokens.SERVE_TOKEN
    token = tokens.ensure_token(path)
    if settings.serve_token is not None:
        token = settings.serve_token.get_secret_value()
    with deployed(served, settings) as url:
        request = urllib.request.Request(
            f"{url}/models/digits/anomaly",
            data=json.dumps({"rows": rows.tolist()}).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = json.load(answer)
        model = f"version {body['version']}, digest {body['digest'][:12]}"
        say(f"            POST {url}/models/digits/anomaly -> {answer.status}, {model}")
    return np.asarray(body["scores"])


def _pca_mse(job: TrainJob, predictor: Predictor) -> float:
    """Holdout error of PCA with as many components as the code has units, on the same rows."""
    import torch

    from hourglass.report import baseline

    manifest, _ = scan(job.data.uri)
    rows = Rows(manifest.shards, predictor.features, job.data.missing, job.data.holdout)
    chunks = [chunk for item in rows.groups for chunk in rows.chunks(*item)]
    features = np.concatenate([features for _, features, _, _ in chunks])
    held = np.concatenate([held for _, _, held, _ in chunks])
    space = predictor.module.preprocessing(torch.from_numpy(features)).double().numpy()
    fitted = space[~held]
    return baseline.pca(fitted, space[held], fitted.mean(axis=0), predictor.code_width).mse


def _show(found: Found, predictor: Predictor, digits: str) -> None:
    say = console().print
    ratio = found.pca_mse / found.holdout_mse
    ours = f"holdout MSE {found.holdout_mse:.4f} with {found.width} code units"
    say(f"\n{ours}; PCA with {found.width} components {found.pca_mse:.4f} ({ratio:.1f} times more)")
    table = Table("row", "label", "score", "endpoint", "hash", title="most anomalous rows")
    for index, row in enumerate(found.scores.slice(0, 3).to_pylist()):
        bits = "".join(f"{byte:08b}" for byte in row["hash"])[: found.width]
        endpoint = f"{found.endpoint_scores[index]:.4f}"
        table.add_row(str(row["row_id"]), str(row["label"]), f"{row['score']:.4f}", endpoint, bits)
    say(table)
    images = _images(digits)
    shown: list[Any] = []
    for row in found.scores.slice(0, 3).to_pylist():
        shown += [images[row["row_id"]], np.asarray(row["reconstruction"])]
    say("\n".join(_side_by_side(shown)), markup=False)
    say("            (each next to its reconstruction)")


def _side_by_side(images: list[NDArray[Any]]) -> list[str]:
    """8 x 8 images as text, two characters per pixel."""
    lines = []
    for y in range(8):
        rows = [image.reshape(8, 8)[y].clip(0, 16) / 16 * (len(SHADES) - 1) for image in images]
        lines.append("   ".join("".join(SHADES[int(v)] * 2 for v in row) for row in rows))
    return lines
