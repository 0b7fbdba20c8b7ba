"""Batch scoring: Ray Data hands (shard, row groups) to a pool of actors that each hold the model.

What travels is work, not rows: an actor reads, scores and writes its part, so rows cross no process
border and a part is written by one writer. The output is there once `_COMMIT.json` is.
"""

import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, Protocol

import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from hourglass import bundles, storage
from hourglass.artifact import Artifact, load, require_outside
from hourglass.config.train import ScoreJob
from hourglass.data.dataset import open_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.manifest import Manifest, Shard, describe
from hourglass.data.reading import RETRIES, find_fatal, threads_ended
from hourglass.data.schema import FeatureSchema, require_columns
from hourglass.errors import ClusterError, DataError, WriteError
from hourglass.inference import output, parts
from hourglass.inference.output import COMMIT, FRESH, LOCK, Scored
from hourglass.inference.parts import Item, Options, Tally
from hourglass.inference.predictor import Predictor
from hourglass.process import native_stderr_aside
from hourglass.tracking import locks


class Model(Protocol):
    """A model resolved to an artifact folder, with the name and version it is known by."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str | None: ...
    @property
    def digest(self) -> str: ...


class Listener(Protocol):
    """Receives the progress of scoring."""

    def scoring(self, rows: int, parts: int, done: int) -> None:
        """It starts: all rows, all parts, parts found finished."""
        ...

    def scored(self, tally: Tally) -> None:
        """A part was written."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the user."""
        ...


def score(job: ScoreJob, model: Model, listener: Listener, fresh: bool = False) -> Scored:
    """Score every row of `job.uri` with `model` into `job.output`; the same job again finishes it.

    With `fresh`, scores that are there are replaced once the new ones are whole.
    Raises: DataError, ArtifactError, ClusterError, WriteError.
    """
    job = _absolute(job)
    dataset = open_dataset(job.uri, job.manifest)
    manifest = dataset.manifest
    require_elsewhere(job)
    loaded = load(model.path, model.digest)
    features = loaded.manifest.features.schema_
    require_columns(manifest.shards[0].path, dataset.schema, features, job.passthrough)
    require_no_clash(job)
    options = Options(
        outputs=job.outputs,
        passthrough=job.passthrough,
        threshold=_threshold(job, loaded),
        missing=loaded.manifest.features.missing if job.missing == "auto" else job.missing,
        model=model.name,
        version=model.version or "",
        digest=model.digest,
    )
    work = parts.items(manifest, features.row_bytes)
    aside = storage.join(job.output, FRESH)
    whole = storage.join(aside, COMMIT)
    if not fresh and not storage.exists(whole):
        committed = output.committed(job.output, options, manifest)
        if committed is not None:
            return committed
    with locks.alone(
        storage.join(job.output, LOCK),
        f"{job.output}: another process writes these scores",
        "choose another output (--set output=FOLDER)",
    ):
        if storage.exists(whole):  # an earlier --fresh was killed when it had come so far
            output.take_its_place(job.output)
        mine = {item.name(options.key) for item in work}
        # Parts of this job that were not committed are gone on with, and replace nothing.
        replaces = fresh and any(
            output.is_ours(n) and n not in mine for n in storage.names(job.output)
        )
        if not replaces:
            committed = output.committed(job.output, options, manifest)
            return committed or _run(job, job.output, options, manifest, work, loaded, listener)
        output.no_strangers(job.output, filter(output.is_ours, storage.names(job.output)))
        output.clear(aside, but=mine)
        scored = _run(job, aside, options, manifest, work, loaded, listener)
        output.take_its_place(job.output)
        return scored


def _run(
    job: ScoreJob,
    folder: str,
    options: Options,
    manifest: Manifest,
    work: Sequence[Item],
    loaded: Artifact,
    listener: Listener,
) -> Scored:
    """Write what is missing of the output into `folder`, and commit it there."""
    output.sweep(folder)
    names = [item.name(options.key) for item in work]
    output.no_strangers(folder, names)
    found = {name: parts.existing(storage.join(folder, name)) for name in names}
    done = {name: tally for name, tally in found.items() if tally is not None}
    todo = [index for index, name in enumerate(names) if name not in done]
    listener.scoring(manifest.rows, len(names), len(done))
    for tally in done.values():
        listener.scored(tally)
    if todo:
        try:
            with closing(_pool(job, folder, options, work, todo, loaded, listener)) as results:
                for name, tally in results:
                    done[name] = tally
                    listener.scored(tally)
        except BaseException:
            with suppress(
                OSError
            ):  # the next command sweeps again; the error of this one is raised
                output.sweep(folder)  # scorers that were killed as another one failed
            raise
    total = sum((done[name] for name in names), Tally())
    scored = Scored(
        uri=job.output,
        rows=total.rows,
        dropped=total.dropped,
        anomalies=total.anomalies,
        mse=total.score / max(1, total.rows),
        range_mse=total.range_mse / max(1, total.rows),
        threshold=options.threshold,
        parts=len(names),
        written=len(todo),
    )
    record = {
        "format": 1,
        "options": asdict(options),
        "input": describe(manifest),
        "parts": list(names),
        "scored": asdict(scored),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    output.sweep(folder)
    storage.write(storage.join(folder, COMMIT), json.dumps(record, indent=1).encode())
    return scored


def _pool(
    job: ScoreJob,
    folder: str,
    options: Options,
    work: Sequence[Item],
    todo: Sequence[int],
    loaded: Artifact,
    listener: Listener,
) -> Generator[tuple[str, Tally], None, None]:
    """Score the items `todo` of `work`; yields each part's name and tally as it is finished."""
    gpu, workers = _workers(job, listener.note)
    workers = min(workers, len(todo))
    dataset = ray.data.from_items(
        [{"index": index} for index in todo], override_num_blocks=min(len(todo), 100 * workers)
    ).map_batches(
        _Scorer,
        fn_constructor_args=(loaded, options, list(work), folder, gpu),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if gpu else 0,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    try:
        # Closed now and not when forgotten: after a shutdown that would start Ray again.
        with threads_ended(), closing(iter(dataset.iter_rows())) as results:
            with native_stderr_aside():  # Ray calls the start of every pool an error
                head = list(islice(results, 1))
            for row in chain(head, results):
                if row["unwritten"]:
                    raise WriteError(*json.loads(row["unwritten"]))
                if row["error"]:
                    raise DataError(row["error"])
                yield row["name"], Tally(**json.loads(row["tally"]))
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        if not isinstance(error, ray.exceptions.RayTaskError):
            shards = [shard for shard, _ in groupby(work[index].shard for index in todo)]
            features = loaded.manifest.features.schema_
            message = find_fatal(shards, partial(_read_through, shards, features, options), 1.0)
            if message is not None:
                raise DataError(message) from None
        cause = str(error).split("\n\nThe above exception was the direct cause")[0]
        raise ClusterError(
            f"scoring failed: {cause.strip().splitlines()[-1]}. What was written is kept; the same "
            "command finishes it"
        ) from error


def _read_through(
    shards: Sequence[Shard], features: FeatureSchema, options: Options, number: int
) -> None:
    shard = shards[number]
    for group, count in enumerate(shard.rows):
        if count:
            for _ in read_chunks(shard.path, group, features, options.missing, options.passthrough):
                pass


class _Scorer:
    """One actor of the pool: it holds the model and writes parts."""

    def __init__(
        self, loaded: Artifact, options: Options, work: Sequence[Item], output: str, gpu: bool
    ) -> None:
        torch.set_num_threads(1)
        self._predictor = Predictor(loaded, "cuda" if gpu else "cpu", options.missing)
        self._options, self._work, self._output = options, work, output

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Write the parts of `batch`; what is wrong with the rows or the disk comes back as words."""
        written: dict[str, list[str]] = {"name": [], "tally": [], "error": [], "unwritten": []}
        for index in batch["index"]:
            item = self._work[int(index)]
            name = item.name(self._options.key)
            uri = storage.join(self._output, name)
            tally, error, unwritten = Tally(), "", ""
            try:
                tally = parts.write(uri, item, self._options, self._predictor)
            except DataError as found:
                error = str(found)
            except WriteError as found:
                unwritten = json.dumps([found.errno, found.strerror, found.filename])
            written["name"].append(name)
            written["tally"].append(json.dumps(asdict(tally)))
            written["error"].append(error)
            written["unwritten"].append(unwritten)
        return written


def _workers(job: ScoreJob, note: Callable[[str], None]) -> tuple[bool, int]:
    """Whether to score on GPUs, and with how many processes. Raises ClusterError if they never fit."""
    gpu, most = _fitting(job)
    workers = max(1, most) if job.workers == "auto" else job.workers
    if workers > most:
        advice = "ask for fewer workers"
        wanted = [{"CPU": 1.0, "GPU": float(gpu)}] * workers
        if not bundles.can_grow():
            kind = "GPUs" if gpu else "CPUs"
            raise ClusterError(f"workers: {workers}, this machine has {most} {kind}; {advice}")
        bundles.wait(wanted, job.wait_s, note, advice)
    return gpu, workers


def _fitting(job: ScoreJob) -> tuple[bool, int]:
    """Whether to score on GPUs, and how many processes fit the nodes that are there."""
    nodes = bundles.nodes()
    gpu = job.accelerator == "gpu" or (
        job.accelerator == "auto" and bundles.total(nodes, "GPU") >= 1
    )
    return gpu, bundles.fitting(nodes, {"CPU": 1.0, "GPU": float(gpu)})


def _threshold(job: ScoreJob, loaded: Artifact) -> float:
    return loaded.manifest.calibration.threshold if job.threshold == "auto" else job.threshold


def require_no_clash(job: ScoreJob) -> None:
    """Raise DataError when the output would have two columns of a name."""
    taken = parts.reserved(job.outputs)
    clash = [name for name in job.passthrough if name in taken]
    if clash:
        raise DataError(
            f"passthrough: the output has a column '{clash[0]}' of its own; "
            f"names taken: {', '.join(sorted(taken))}"
        )


def _absolute(job: ScoreJob) -> ScoreJob:
    """The job with an output that means the same in every process, whatever its folder."""
    if "://" in job.output:
        return job
    return ScoreJob.model_validate({**job.model_dump(), "output": os.path.abspath(job.output)})


def require_elsewhere(job: ScoreJob) -> None:
    """Raise DataError when the parts would be in an artifact, or among the shards of the next run."""
    job = _absolute(job)
    require_outside(job.output)
    for uri in [job.uri] if isinstance(job.uri, str) else job.uri:
        folder = (uri if "://" in uri else os.path.abspath(uri)).rstrip("/")
        if f"{job.output.rstrip('/')}/".startswith(f"{folder}/"):
            raise DataError(
                f"output: {job.output} lies in {folder}, whose files are the rows to score; "
                "choose a folder elsewhere"
            )
