"""Private names of Ray and aiobotocore: each is there, and only their adapters use them."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import reduce
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import ray.train
from aiobotocore.httpsession import AIOHTTPSession
from ray._private import ray_constants
from ray.train.torch import TorchTrainer

import hourglass
from hourglass import ray_internals, storage
from hourglass.cluster import connect, submit
from hourglass.errors import ClusterError
from hourglass.settings import Settings

PACKAGE = Path(hourglass.__file__).parent
PROJECT = PACKAGE.parents[1] / "pyproject.toml"

NAMES = {
    "ray._raylet:Config.initialize": "a Ray imported before hourglass keeps an old RAY_AUTH_MODE",
    "ray._raylet:AuthenticationTokenLoader.instance": "a Ray imported earlier keeps an old token",
    "ray._raylet:GcsClient": "connecting to a dead or foreign address takes 40 s to fail",
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": "a local cluster listens on all interfaces",
    "ray._private.worker:print_to_stdstream": "a lost machine dumps its whole log on the terminal",
    "ray._private.ray_logging:global_worker_stdstream_dispatcher.add_handler": (
        "the output of workers is not shown"
    ),
    "ray._private.ray_logging:global_worker_stdstream_dispatcher.remove_handler": (
        "each line of a worker is shown twice, with Ray's prefix"
    ),
    "ray._private.state:GlobalState._connect_and_get_accessor": (
        "Ctrl-C in a sweep can leave CPUs reserved on a cluster that goes on"
    ),
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.FromString": (
        "Ctrl-C in a sweep can leave CPUs reserved on a cluster that goes on"
    ),
    "ray.serve._private.constants:SERVE_CONTROLLER_NAME": "`hourglass serve` cannot stop cleanly",
    "ray.serve._private.constants:SERVE_NAMESPACE": "`hourglass serve` cannot stop cleanly",
    "ray.train.torch:TorchTrainer._create_default_callbacks": (
        "each run starts two more actors (ADR 0014)"
    ),
    "ray.train.torch:TorchTrainer._register_sigint_handler": (
        "Ctrl-C during training exits without a message and without an artifact's resume hint"
    ),
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback": (
        "each run starts a dataset manager that it does not need (ADR 0014)"
    ),
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback": (
        "each run starts a cleaner that it does not need (ADR 0014)"
    ),
    "ray.data.exceptions:logger": "an error of a read task is printed with all of Ray's frames",
    "ray.data._internal.execution.streaming_executor_state:logger": (
        "an error of a read task is printed with all of Ray's frames"
    ),
    "ray.data._internal.progress:get_progress_manager": (
        "each dataset warns that progress bars are disabled"
    ),
}
"""Each private name, and what users notice when it is gone."""


@pytest.mark.parametrize("name", NAMES)
def test_private_name_exists(name: str) -> None:
    module, _, path = name.partition(":")
    try:
        reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{error}; without it {NAMES[name]}")


@pytest.mark.parametrize(
    ("argument", "breaks"),
    [
        ("_node_ip_address", "a local cluster listens on all interfaces"),
        ("_temp_dir", "session folders are open to other users, or too long for socket names"),
    ],
)
def test_private_argument_of_ray_init_exists(argument: str, breaks: str) -> None:
    assert argument in unwrap(ray.init).__code__.co_consts, breaks  # popped from `**kwargs`


def test_private_timeout_of_aiobotocore_exists() -> None:
    assert AIOHTTPSession()._timeout.total is None, "HOURGLASS_S3_TOTAL_TIMEOUT_S has no effect"
    assert storage._session(7.0)()._timeout.total == 7.0


@pytest.mark.parametrize("found", ["2.61.0", "2.59.3", "3.60.0", "2.6", "2.600.0"])
def test_another_minor_version_of_ray_is_refused(
    found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = (
        f"Ray {found} is installed, supported is >=2.60,<2.61: hourglass relies on private names of "
        "Ray, which move between minor versions; run "
        "`pip install 'ray[data,train,tune,serve]>=2.60,<2.61'`"
    )
    monkeypatch.setattr(ray, "__version__", found)
    settings = Settings(home=tmp_path)
    for start in (
        lambda: connect.connect(settings=settings),
        lambda: submit.open_client("http://127.0.0.1:1", settings),
    ):
        with pytest.raises(ClusterError, match=f"^{re.escape(expected)}$"):
            start()
    assert not ray.is_initialized()


def test_the_tested_version_is_the_one_allowed() -> None:
    ray_internals.require_tested_version()
    ray_internals.require_tested_version("2.60.9")
    project = tomllib.loads(PROJECT.read_text())["project"]
    assert ray_internals.REQUIREMENT in project["dependencies"]


def test_environment_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_internals.reload_environment(many_machines=False)
    assert ray_constants.ENABLE_RAY_CLUSTER is False
    ray_internals.reload_environment(many_machines=True)
    assert ray_constants.ENABLE_RAY_CLUSTER is True


def callbacks(kind: type, folder: Path) -> list[str]:
    trainer: Any = kind(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="run", storage_path=str(folder)),
    )
    return [type(callback).__name__ for callback in trainer._create_default_callbacks()]


def test_two_callbacks_are_left_out(tmp_path: Path) -> None:
    kinds = (TorchTrainer, ray_internals.trainer_class())
    theirs, ours = (callbacks(kind, tmp_path) for kind in kinds)
    assert {*theirs} - {*ours} == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert [name for name in theirs if name in ours] == ours
    assert "BackendSetupCallback" in ours


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private modules, arguments and logger names of other packages in a source file."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{name.name}" for name in names)
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.keyword(arg=str(argument)) if argument.startswith("_"):
                yield f"argument.{argument}"
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w.]+", text):
                yield text if text.startswith(("ray.", "mlflow.", "torch.")) else ""


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def test_no_other_module_uses_private_names() -> None:
    used = {
        str(path.relative_to(PACKAGE)): found
        for path in sorted(PACKAGE.rglob("*.py"))
        if (found := [*filter(is_private, private_names(ast.parse(path.read_text())))])
    }
    assert used.keys() == {"ray_internals.py"}  # which is also the control: it has some
    assert {"ray._raylet", "argument._temp_dir", "ray._private.worker"} <= {
        *used["ray_internals.py"]
    }
