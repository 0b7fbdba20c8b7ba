"""The documentation uses the project's terms, and names only commands and fields that exist."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hourglass.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("docs/examples/*.ipynb")),
]
RECIPES = [
    path
    for folder in ("jobs", "tune_spaces", "serve", "k8s")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
]
REPLACED = {
    "sittings?": "session",
    "spool(s|ed)?": "outbox",
    "board": "event channel",
    "desk": "trial source",
    "crew": "resources",
    "feed": "data loader",
    "census": "dataset statistics",
    "knobs?": "hyperparameter",
    "golden": "reference outputs",
    "referees?": "baseline",
    "verdicts?": "comparison, decision",
    "judges?|judged|judging": "evaluate, baseline",
    "loners": "unpackable",
    "blame[ds]?": "cause",
    "the lead('s)?": "primary member",
    "house|rooms?": "package, module, space",
    "sentences?": "message",
    "said|says|told|tells|heard|hears": "report, show, name",
    "nobody|whoever|somebody": "no one by name: the user, a process",
    "alike": "both",
    "batch_rows": "batch_size",
    "quantised|log_uniform|int_uniform": "quniform, loguniform, randint",
}
"""Words that left the project, and what stands in their place."""


def prose(path: Path) -> str:
    """The text of a page without code blocks, of a notebook its Markdown, of YAML its comments."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n".join("".join(source) for source in cells)
    if path.suffix == ".yaml":
        return "\n".join(re.findall(r"^\s*# (.*)", text, flags=re.M))
    return re.sub(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.S | re.M)


def replaced_words(text: str) -> list[str]:
    """Each replaced word in a text, with what stands in its place."""
    found = []
    for word, instead in REPLACED.items():
        for match in re.finditer(rf"\b({word})\b", text, flags=re.I):
            found.append(
                f"'{match[0]}' in '{text[max(0, match.start() - 30) : match.end() + 20]}': {instead}"
            )
    return found


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """Code blocks of the pages in a language."""
    for path in PAGES:
        if path.suffix == ".md":
            for block in re.findall(
                rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.S | re.M
            ):
                yield path, block


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `hourglass ...` of the shell blocks, as words."""
    for path, block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"[|;&]\s", line):
                if re.match(r"\s*(\S+=\S* )?hourglass ", part):  # after a variable, too
                    words = shlex.split(part, comments=True)
                    yield path.name, words[words.index("hourglass") + 1 :]


@pytest.mark.parametrize("path", PAGES + RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_terms_of_the_project(path: Path) -> None:
    assert replaced_words(prose(path)) == []


@pytest.mark.parametrize(
    "text",
    ["The sentence names the file.", "Nobody answers.", "It is told so.", "Golden rows", "a knob"],
)
def test_a_replaced_word_is_noticed(text: str) -> None:
    assert len(replaced_words(text)) == 1


def test_a_leaderboard_is_no_board() -> None:
    assert replaced_words("The leaderboard has a headroom of 3.") == []


def test_commands_and_options_exist() -> None:
    seen = set()
    for page, words in commands():
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            seen.add(words[0])
            command, words = command.commands[words[0]], words[1:]
        assert not getattr(command, "commands", {}), f"{page}: no such command: {words[:1]}"
        known = {name for option in command.params for name in option.opts}
        options = {word for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known, f"{page}: {command.name} has no {options - known}"
    assert {"train", "tune", "score", "serve", "submit", "inspect"} <= seen


def test_the_files_of_the_tutorials_are_valid(tmp_path: Path) -> None:
    """Those that start with their name in a comment, as a reader saves them."""
    names = []
    for path, block in blocks("yaml"):
        name = re.match(r"# ([\w-]+\.yaml)\n", block)
        if name and path.parent.name == "tutorials":
            (tmp_path / name[1]).write_text(block)
            names.append(name[1])
    assert len(names) == 5
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "hourglass.cli", "check", name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_out_of_the_root_pages_lead_to_files(page: Path) -> None:
    """`make docs` checks those between the pages of docs/."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert links or page.name != "README.md"
