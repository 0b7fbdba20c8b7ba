"""The files that describe the project agree with each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from hourglass import __version__

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


def test_the_name_of_another_project_or_extra_is_found() -> None:
    """Negative control of the test above."""
    assert wrong_requirements("pip install 'hourglass[search]'") == ["hourglass[search]"]
    assert wrong_requirements('f"hourglass=={version}"') == ["hourglass=="]
    assert wrong_requirements("hourglass-autoencoder[serach]") == ["hourglass-autoencoder[serach]"]
    assert wrong_requirements("pip install 'hourglass-autoencoder[search]'") == []


def test_requirements_are_found_where_they_are_known_to_be() -> None:
    found = {path.name for path in TEXTS if PROJECT["name"] in path.read_text()}
    assert {"neighbours.py", "mlflow.py"} <= found


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_version_is_one() -> None:
    assert read("CITATION.cff")["version"] == __version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


def test_ci_runs_the_scripts_that_anyone_can_run() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run", "bash .ci/image"]


def test_hooks_run_what_lint_runs() -> None:
    (hooks,) = (repo["hooks"] for repo in read(".pre-commit-config.yaml")["repos"])
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    tools = re.findall(r"\$\(BIN\)/(ruff \w+|[\w-]+)", lint)
    hooked = [hook["entry"].removeprefix(".venv/bin/").split(" --")[0] for hook in hooks]
    assert sorted(hooked) == sorted({*tools} - {"lint-imports"})  # which reads the whole tree


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_issue_forms_have_what_github_asks_for(form: str) -> None:
    tree = read(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= tree.keys()
    for field in tree["body"]:
        assert field["type"] == "markdown" or (field["id"] and field["attributes"]["label"])
