"""What the project says about itself in several files is the same in all of them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [
    path
    for pattern in (
        "platform/**/*.py",
        "docs/**/*.md",
        "*.md",
        "Containerfile",
        "Makefile",
        ".ci/*",
    )
    for path in sorted(ROOT.glob(pattern))
]
REQUIREMENT = re.compile(r"(?<![\w./-])(hourglass[\w-]*)(?:\[([a-z,]+)\]|==)")


def wrong_requirements(text: str) -> list[str]:
    """Requirements in `text`, such as NAME[EXTRA] or NAME==, that would not install this project."""
    return [
        found.group()
        for found in REQUIREMENT.finditer(text)
        if found[1] != PROJECT["name"]
        or (found[2] and not {*found[2].split(",")} <= {*PROJECT["optional-dependencies"]})
    ]


def test_requirements_name_this_distribution() -> None:
    found = {str(path.relative_to(ROOT)): wrong_requirements(path.read_text()) for path in TEXTS}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_the_name_of_another_project_or_extra_is_noticed() -> None:
    """Negative control of the test above."""
    assert wrong_requirements("pip install 'hourglass[search]'") == ["hourglass[search]"]
    assert wrong_requirements('f"hourglass=={version}"') == ["hourglass=="]
    assert wrong_requirements("hourglass-autoencoder[serach]") == ["hourglass-autoencoder[serach]"]
    assert wrong_requirements("pip install 'hourglass-autoencoder[search]'") == []


def test_requirements_are_found_where_they_are_known_to_be() -> None:
    found = {path.name for path in TEXTS if PROJECT["name"] in path.read_text()}
    assert {"neighbours.py", "model.py"} <= found
