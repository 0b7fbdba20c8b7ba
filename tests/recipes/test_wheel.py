"""The wheel works in a fresh environment, without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from hourglass import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "platform", "jobs", "tune_spaces", "serve")
DATA = {
    f"hourglass/recipes/{path.relative_to(ROOT / top)}": path
    for top, pattern in (
        (".", "jobs/*/*"),
        (".", "tune_spaces/*"),
        (".", "serve/*"),
        ("docs", "docs/schema/*"),
    )
    for path in ROOT.glob(pattern)
}
"""What the wheel must hold: recipes and schemas."""
KINDS = ("train", "tune", "score", "serve")
COMMANDS = f"""
import sys
from hourglass import cli
for kind in {KINDS}:
    for command in (["init", kind], ["check", f"{{kind}}.yaml"]):
        sys.argv[1:] = command
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, command
"""
DEMO = """
import hourglass.demo
from hourglass.settings import Settings

def no_cluster(**_):
    print("everything before Ray works")
    raise SystemExit

hourglass.demo.connection = no_cluster
hourglass.demo.demo(Settings())
"""


def variables() -> dict[str, str]:
    """The environment without variables that point at this repository or at a cluster."""
    ours = ("PYTHONPATH", "HOURGLASS_", "MLFLOW_", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *args]
    subprocess.run(command, env=variables(), check=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docs/schema", folder / "docs/schema")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and with the dependencies of this one behind it."""
    folder = tmp_path_factory.mktemp("fresh") / "environment"
    venv.create(folder, symlinks=True)
    pip("--python", str(folder / "bin/python"), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def run(environment: Path, folder: Path, *command: str) -> str:
    """Standard output of a program of the environment, run in `folder`."""
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder,
        env=variables(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def missing(wheel: Path) -> set[str]:
    """Recipes and schemas of the repository that the wheel lacks or has with other contents."""
    with zipfile.ZipFile(wheel) as files:
        held = {name: files.read(name) for name in files.namelist()}
    return {name for name, path in DATA.items() if held.get(name) != path.read_bytes()}


def test_the_wheel_has_every_recipe_and_schema(wheel: Path) -> None:
    assert wheel.name == f"hourglass_autoencoder-{__version__}-py3-none-any.whl"
    assert len(DATA) >= 30
    assert missing(wheel) == set()


def test_a_recipe_missing_from_the_wheel_is_found(wheel: Path, tmp_path: Path) -> None:
    """Negative control of the test above."""
    lost = "hourglass/recipes/jobs/lorenz/train.yaml"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(tmp_path / "less.whl", "w") as new:
        for name in old.namelist():
            if name != lost:
                new.writestr(name, old.read(name))
    assert missing(tmp_path / "less.whl") == {lost}


def test_the_package_is_the_wheels_and_is_typed(environment: Path, tmp_path: Path) -> None:
    code = "import hourglass, sys; print(hourglass.__file__, *sys.path, sep='\\n')"
    package, *path = run(environment, tmp_path, "python", "-c", code).splitlines()
    assert Path(package).is_relative_to(environment)
    assert (Path(package).parent / "py.typed").is_file()
    assert str(ROOT / "platform") not in path
    code = "from importlib.metadata import version; print(version('hourglass-autoencoder'))"
    assert run(environment, tmp_path, "python", "-c", code) == f"{__version__}\n"


def test_the_command_answers(environment: Path, tmp_path: Path) -> None:
    assert run(environment, tmp_path, "hourglass", "--version") == f"hourglass {__version__}\n"
    assert run(environment, tmp_path, "hourglass", "--help").startswith("Usage: hourglass")


def test_files_of_init_pass_check(environment: Path, tmp_path: Path) -> None:
    run(environment, tmp_path, "python", "-c", COMMANDS)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{kind}.{ending}" for kind in KINDS for ending in ("yaml", "schema.json")
    }


def test_schemas_are_written(environment: Path, tmp_path: Path) -> None:
    run(environment, tmp_path, "hourglass", "schema", "out")
    for kind in KINDS:
        expected = (ROOT / f"docs/schema/{kind}.json").read_bytes()
        assert (tmp_path / f"out/{kind}.json").read_bytes() == expected


def test_the_demo_begins(environment: Path, tmp_path: Path) -> None:
    """Up to the start of Ray: it finds its recipes and writes its rows."""
    shown = run(environment, tmp_path, "python", "-c", DEMO)
    assert "1797 digits as Parquet shards" in shown
    assert shown.endswith("everything before Ray works\n")
    assert len([*tmp_path.glob(".hourglass/demo/digits/*.parquet")]) == 4
