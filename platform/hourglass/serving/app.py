"""The Ray Serve application: one deployment per model, and an ingress that checks and decodes.

A Serve config file imports `build`, which resolves aliases once: every replica of a deployment
loads the same digest, so all answers of a deployment come from one version.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from hourglass import storage
from hourglass.artifact import MANIFEST
from hourglass.config.serve import ServeSpec
from hourglass.inference.endpoints import Arrays, ModelMetadata
from hourglass.inference.predictor import Predictor
from hourglass.serving import middleware
from hourglass.serving.answers import ModelRequest, answer_all
from hourglass.serving.http import create_app
from hourglass.serving.limits import RETRY_AFTER_S, RequestError
from hourglass.serving.metrics import ModelMetrics
from hourglass.settings import Settings

CONSTRUCTOR_TRIES = 2
READY_TIMEOUT_S = 1.0
OTHER_REQUESTS = 16
"""Capacity of the ingress for requests that need no model: lists, metadata, health."""


def build(args: ServeSpec) -> serve.Application:
    """The application of a spec; the `import_path` of Serve config files.

    Raises: RegistryError or ArtifactError for a missing model, ClusterError with no token.
    """
    from hourglass.tracking.registry import (
        resolve,  # replicas import this module and need no MLflow
    )

    settings = Settings()
    token = middleware.read_token(settings)
    models = {}
    for model in args.models:
        found = resolve(model.uri, settings)
        # Replicas have other working directories than this process.
        path = found.path if "://" in found.path else str(Path(found.path).absolute())
        options = _model_options(args)
        deployment = MODEL.options(name=f"model-{model.name}", **options)
        models[model.name] = deployment.bind(
            model.name,
            path,
            f"models:/{found.name}/{found.version}" if found.version else path,
            found.version,
            found.digest,
            args.max_batch_rows,
            args.batch_wait_s,
            args.num_cpus,
        )
    ingress: serve.Application = INGRESS.options(**_ingress_options(args)).bind(
        args, models, middleware.fingerprint(token)
    )
    return ingress


def _model_options(spec: ServeSpec) -> dict[str, Any]:
    unbounded = spec.max_queued_requests == "unbounded"
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": spec.num_cpus},
        "max_ongoing_requests": spec.max_ongoing_requests,
        "max_queued_requests": -1 if unbounded else spec.max_queued_requests,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
    }
    if isinstance(spec.replicas, int):
        return options | {"num_replicas": spec.replicas}
    scaling = {
        "min_replicas": spec.replicas.min,
        "max_replicas": spec.replicas.max,
        "target_ongoing_requests": spec.replicas.target_ongoing_requests,
    }
    return options | {"autoscaling_config": scaling}


def _ingress_options(spec: ServeSpec) -> dict[str, Any]:
    """Capacity for all that the models can hold, so that the models' queues overflow first.

    Ray counts a request as queued until it is assigned, so a burst needs the same capacity again.
    """
    queued = 1024 if spec.max_queued_requests == "unbounded" else spec.max_queued_requests
    per_model = spec.most_replicas * spec.max_ongoing_requests + queued
    capacity = len(spec.models) * per_model + OTHER_REQUESTS
    return {
        "num_replicas": spec.ingress_replicas,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": capacity,
        "max_queued_requests": -1 if spec.max_queued_requests == "unbounded" else capacity,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
    }


class Model:
    """One model: a verified predictor that computes on a thread of its own."""

    def __init__(
        self,
        name: str,
        path: str,
        pinned: str,
        version: str | None,
        digest: str,
        max_batch_rows: int,
        batch_wait_s: float,
        cpus: float,
    ) -> None:
        threads = max(1, int(cpus))
        torch.set_num_threads(threads)
        # PyTorch keeps this setting per thread, so the worker thread sets it as well.
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._predictor = Predictor.load(_local_copy(path, pinned), digest)
        self._metadata = ModelMetadata.of(self._predictor, name, version)
        self._answer_batch.set_max_batch_size(max_batch_rows)
        self._answer_batch.set_batch_wait_timeout_s(batch_wait_s)

    async def metadata(self) -> ModelMetadata:
        """The model's metadata."""
        return self._metadata

    async def alive(self) -> bool:
        """True: the replica is up."""
        return True

    async def answer(self, request: ModelRequest) -> Arrays:
        """The answer to one request, computed in a batch with concurrent ones."""
        answer: Arrays = await self._answer_batch(request)
        return answer

    @serve.batch(batch_size_fn=lambda requests: sum(len(request.rows) for request in requests))  # type: ignore[untyped-decorator]
    async def _answer_batch(self, requests: list[ModelRequest]) -> list[Arrays]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, answer_all, self._predictor, requests)


def _local_copy(path: str, pinned: str) -> str:
    """The artifact's folder; a copy of it on a machine that cannot see the builder's."""
    if storage.exists(storage.join(path, MANIFEST)):
        return path
    from hourglass.tracking.registry import resolve  # imports MLflow, only where needed

    return resolve(pinned, Settings()).path


class Ingress:
    """The HTTP application in front of all models."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, spec: ServeSpec, models: Mapping[str, DeploymentHandle], token_sha256: str
    ) -> None:
        metadata = {name: await handle.metadata.remote() for name, handle in models.items()}
        self.app_parts = (spec, Handles(models, metadata), token_sha256)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(*self.app_parts)


class Handles:
    """The models behind their handles: a backend for the endpoints."""

    def __init__(
        self, handles: Mapping[str, DeploymentHandle], models: Mapping[str, ModelMetadata]
    ) -> None:
        self.handles = handles
        self.models = models
        self._metrics = ModelMetrics()

    async def answer(self, name: str, request: ModelRequest) -> Arrays:
        """The answer of model `name`. Raises RequestError: Overloaded, or Unavailable."""
        with self._metrics.measured(name, len(request.rows)):
            return await self._answer(name, request)

    async def _answer(self, name: str, request: ModelRequest) -> Arrays:
        retry = {"retry-after": str(RETRY_AFTER_S)}
        try:
            answer: Arrays = await self.handles[name].answer.remote(request)
            return answer
        except BackPressureError:
            raise RequestError("Overloaded", "the queue is full; try again later", retry) from None
        except (DeploymentUnavailableError, RayServeException):
            raise RequestError("Unavailable", "the model has no running replica", retry) from None

    async def ready(self) -> bool:
        """True when every model answers; a full queue counts as an answer."""
        return all(await asyncio.gather(*map(self._alive, self.handles.values())))

    async def _alive(self, handle: DeploymentHandle) -> bool:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await handle.alive.remote()
        except BackPressureError:
            return True
        except Exception:  # whatever failed, a load balancer should send requests elsewhere
            return False
        return True


MODEL = serve.deployment(Model)
INGRESS = serve.deployment(serve.ingress()(Ingress), name="ingress")
