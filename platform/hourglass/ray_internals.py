"""Every private name of Ray that hourglass uses: the only module to read when Ray moves one.

Ray and its private modules are imported inside the functions, after `require_tested_version`.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hourglass.errors import ClusterError, first_line
from hourglass.process import deferred

TESTED = (2, 60)
"""The minor version of Ray that these names were tested with; pyproject.toml allows no other."""
REQUIREMENT = "ray[data,train,tune,serve]>=2.60,<2.61"

ERROR_LOGGERS = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
"""Loggers that print every error of a task, with all of Ray's frames, before it is raised."""
PROGRESS_LOGGER = "ray.data._internal.progress"
"""The logger that warns that progress bars are disabled."""
LINES = "hourglass_lines"
"""The name of our handler of worker output."""


def require_tested_version(found: str | None = None) -> None:
    """Raise ClusterError unless the installed Ray (`found`) has the minor version tested here."""
    if found is None:
        import ray

        found = str(ray.__version__)
    if found.split(".")[:2] != [str(part) for part in TESTED]:
        lowest, above = (f"{TESTED[0]}.{minor}" for minor in (TESTED[1], TESTED[1] + 1))
        raise ClusterError(
            f"Ray {found} is installed, supported is >={lowest},<{above}: hourglass relies on "
            f"private names of Ray, which move between minor versions; run "
            f"`pip install '{REQUIREMENT}'`"
        )


def reload_environment(many_machines: bool) -> None:
    """Make a Ray that was imported earlier read the environment again, its token included.

    Without `many_machines` a new cluster listens on loopback only.
    """
    from ray._private import ray_constants

    raylet = _raylet()
    ray_constants.ENABLE_RAY_CLUSTER = many_machines
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def start_local(cpus: int | None, host: str, folder: Path, logging_level: int) -> None:
    """Start a cluster on this machine that listens on `host` and keeps its session in `folder`."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        logging_level=logging_level,
        _node_ip_address=host,
        _temp_dir=str(folder),
    )


def started_here() -> bool:
    """True if this process started the cluster that it is connected to."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.is_head())


def open_head(address: str) -> Any:
    """A client of the head at `address`; Ray gives up on a silent one after 40 s.

    Raises: ray.exceptions.AuthenticationError, and RPC errors that have no common base.
    """
    return _raylet().GcsClient(address=address)


@dataclass(frozen=True)
class RayNode:
    """A node as the head knows it: its address, resources and labels."""

    host: str
    head: bool
    alive: bool
    left: bool  # it was stopped, and not lost
    resources: dict[str, float]
    available: dict[str, float]
    labels: dict[str, str]


def nodes(address: str, timeout_s: float = 8.0) -> list[RayNode]:
    """The nodes of the cluster whose head is at `address`, lost ones included. Raises ClusterError."""
    from ray.core.generated import gcs_pb2

    try:
        client = open_head(address)
        found = client.get_all_node_info(timeout=timeout_s)
        usage = client.get_all_resource_usage(timeout=timeout_s).resource_usage_data.batch
    except Exception as error:  # Ray's RPC errors have no common base class
        raise ClusterError(
            f"address {address}: the head does not list its nodes ({first_line(error)})"
        ) from None
    available = {each.node_id: dict(each.resources_available) for each in usage}
    return [
        RayNode(
            node.node_manager_address,
            node.is_head_node,
            node.state == gcs_pb2.GcsNodeInfo.ALIVE,
            node.death_info.reason == type(node.death_info).EXPECTED_TERMINATION,
            dict(node.resources_total),
            available.get(node.node_id, {}),
            dict(node.labels),
        )
        for node in found.values()
    ]


def dashboard(address: str) -> str:
    """`host:port` of the dashboard of the cluster at `address`; empty without one."""
    from ray._private import ray_constants

    key = ray_constants.DASHBOARD_ADDRESS.encode()
    space = ray_constants.KV_NAMESPACE_DASHBOARD
    found = open_head(address).internal_kv_get(key, namespace=space, timeout=8.0)
    return (found or b"").decode()


def forward_output(lines: Callable[[dict[str, Any]], None], message: Callable[..., None]) -> None:
    """Pass the output of workers to `lines` and error messages of the head to `message`."""
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    for name in ("ray_print_logs", LINES):
        dispatcher.remove_handler(name)
    dispatcher.add_handler(LINES, lines)
    worker.print_to_stdstream = message


def placement_groups_of_actors() -> set[str]:
    """The ids of the placement groups that actors of this job created, removed ones included."""
    import ray
    from ray._private import state
    from ray.core.generated import gcs_pb2

    job = ray.get_runtime_context().get_job_id()
    table = state.state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(entry) for entry in table]
    driver = ray.ActorID.nil().binary()
    return {
        group.placement_group_id.hex()
        for group in groups
        if group.creator_job_id.hex() == job and group.creator_actor_id not in (b"", driver)
    }


def serve_controller() -> Any:
    """The actor that controls Ray Serve. Raises ValueError when there is none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


@functools.cache
def trainer_class() -> Any:
    """A TorchTrainer that starts fewer processes and leaves none behind when it is interrupted.

    It does without two callbacks. One splits datasets between workers, which here read their own rows;
    the other frees the placement group of a lost controller, which `distribute` does, and needs the
    dashboard for it.
    """
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import datasets, placement_group_callback

    needless = (
        datasets.DatasetsCallback,
        placement_group_callback.PlacementGroupCleanerCallback,
    )

    class Trainer(TorchTrainer):  # type: ignore[misc]
        _controller: Any = None

        def fit(self) -> Any:
            """Run the workers to their end; raises KeyboardInterrupt with none of them left."""
            try:
                return super().fit()
            except KeyboardInterrupt:
                if self._controller is not None:
                    with deferred():
                        ray.kill(self._controller)  # its workers, which it owns, end with it
                raise

        def _create_default_callbacks(self) -> list[Any]:
            every = super()._create_default_callbacks()
            return [callback for callback in every if not isinstance(callback, needless)]

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's own handler would exit the process with code 1 and no message."""
            self._controller = controller

    return Trainer


@functools.cache
def torch_config() -> Any:
    """A TorchConfig whose workers exchange gradients through the network interface of their node.

    By itself Gloo listens on the address that the host's name resolves to: loopback with Debian's usual
    /etc/hosts, so that other machines cannot connect, or on loopback clusters an open interface.
    """
    from ray.train.torch import TorchConfig

    base: Any = TorchConfig().backend_cls

    class OnNodeInterface(base):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_use_node_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return OnNodeInterface

    return Config()


def _use_node_interface() -> None:
    """Let Gloo and NCCL use the interface that has this node's address in Ray, unless they are told."""
    import psutil  # type: ignore[import-untyped]
    import ray

    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if address in {each.address for each in found}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _raylet() -> Any:
    return importlib.import_module("ray._raylet")
