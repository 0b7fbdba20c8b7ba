"""The recipes that come with hourglass: YAML files of every kind, to run or to start your own from.

In a clone, this folder links to the top-level `jobs/`, `tune_spaces/`, `serve/` and `docs/schema/`;
a wheel contains their files.
"""

import re
import textwrap
from pathlib import Path
from typing import Literal

from hourglass.errors import SpecError, nearest

Kind = Literal["train", "tune", "score", "serve"]

FOLDER = Path(__file__).parent
FILES: dict[Kind, tuple[str, str]] = {
    "train": ("jobs/*/train.yaml", "digits"),
    "tune": ("tune_spaces/*.yaml", "denoising"),
    "score": ("jobs/*/score.yaml", "digits"),
    "serve": ("serve/*.yaml", "local"),
}
"""The recipes of each kind, and the default: one whose comments explain its fields."""


def names(kind: Kind) -> list[str]:
    """The names of the recipes of a kind."""
    return sorted(_files(kind))


def find(kind: Kind, name: str | None = None) -> Path:
    """The file of a recipe, or of the default recipe of its kind. Raises SpecError."""
    files = _files(kind)
    name = name or FILES[kind][1]
    if name not in files:
        raise SpecError(
            f"--recipe {name}: no {kind} recipe of this name{nearest(name, files)} "
            f"Recipes: {', '.join(sorted(files))}"
        )
    return files[name]


def purpose(file: Path) -> str:
    """The first clause of the purpose in a recipe's header."""
    header = re.search(r"^# Purpose:(.*?)^# Cost:", file.read_text(), re.DOTALL | re.MULTILINE)
    words = " ".join((header[1] if header else "").replace("\n#", "\n").split())
    return re.split(r"[.:;](?:\s|$)", words)[0]


def standalone(file: Path, schema: str) -> str:
    """The text of a recipe with its base job inlined; `schema` is the path of its JSON Schema."""
    text = re.sub(r"(\$schema=).*", rf"\g<1>{schema}", file.read_text(), count=1)
    base = re.search(r"^base: (\S+\.yaml)$", text, re.MULTILINE)
    if base is None:
        return text
    job = re.sub(r"\A(#.*\n)+", "", (file.parent / base[1]).read_text())
    return text.replace(base[0], "base:\n" + textwrap.indent(job, "  ").rstrip())


def _files(kind: Kind) -> dict[str, Path]:
    """The files of a kind, by the name of the file, or of its folder (jobs/mnist/train.yaml: mnist)."""
    return {
        path.parent.name if path.stem == kind else path.stem: path
        for path in FOLDER.glob(FILES[kind][0])
    }
