"""The notebooks: executed without errors, small, and still true where they are cheap to execute again."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hourglass

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WITHOUT_RAY = ("anomaly", "digits")
LIMIT_BYTES = 400_000

Cells = list[dict[str, Any]]


def code_cells(path: Path) -> Cells:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def printed(cells: Cells) -> str:
    """What the cells printed when the notebook was stored."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


def unknown_names(source: str) -> set[str]:
    """Names imported from hourglass that it does not offer."""
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "hourglass"
        for alias in node.names
    }
    return imported - {f"hourglass.{name}" for name in hourglass.__all__}


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["anomaly", "digits", "sweep"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs(path: Path) -> None:
    cells = code_cells(path)
    assert path.stat().st_size < LIMIT_BYTES
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, "it warned"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert "/tmp" not in json.dumps(outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names(path: Path) -> None:
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    assert unknown_names(source) == set()
    assert "hourglass" in source


def test_a_private_name_is_noticed() -> None:
    assert unknown_names("from hourglass.training import launch") == {"hourglass.training.launch"}
    assert unknown_names("from hourglass import Autoencoder, Nothing") == {"hourglass.Nothing"}


@pytest.mark.parametrize("name", WITHOUT_RAY)
def test_a_notebook_prints_the_same_again(name: str, tmp_path: Path) -> None:
    """Its cells as one script; the numbers may differ in the last digits on another CPU."""
    cells = code_cells(FOLDER / f"{name}.ipynb")
    script = "import matplotlib\nmatplotlib.use('Agg')\n"
    script += "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    again, stored = done.stdout.split(), printed(cells).split()
    assert len(again) == len(stored) > 10
    for now, then in zip(map(number, again), map(number, stored), strict=True):
        assert now == (pytest.approx(then, rel=0.1) if isinstance(then, float) else then)


def number(word: str) -> float | str:
    """The number that a word is, if it is one: `93.8%`, `0.0138,`."""
    try:
        return float(word.strip("(),%"))
    except ValueError:
        return word
