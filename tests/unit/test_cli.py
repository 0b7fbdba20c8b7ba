"""The command line: exit codes, one-line errors, and a `--help` that imports nothing heavy."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from hourglass import __version__, cli
from hourglass.errors import DataError, HourglassError, SpecError, TrainingError, WriteError
from hourglass.process import Terminated

HEAVY = ("torch", "ray", "mlflow", "pyarrow", "pandas", "numpy", "sklearn", "fastapi", "fsspec")
PROBE = f"""
import json, sys
from hourglass.cli import main
sys.argv = ["hourglass", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    print(json.dumps([stop.code or 0, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def hourglass(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *args], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("option", "first"), [("--help", "Usage: hourglass"), ("--version", f"hourglass {__version__}")]
)
def test_help_and_version_import_nothing_heavy(option: str, first: str) -> None:
    done = hourglass(option)
    *text, last = done.stdout.strip().splitlines()
    assert "\n".join(text).strip().startswith(first)
    assert json.loads(last) == [0, []]
    assert done.stderr == ""


def groups(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The command line of every group of commands."""
    if isinstance(command, TyperGroup):
        yield path
        for name, member in command.commands.items():
            yield from groups(member, *path, name)


def summaries(app: typer.Typer, *path: str) -> dict[str, str]:
    """What `--help` shows of each command of a group on a terminal of 80 columns."""
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).output
    assert max(map(len, shown.splitlines())) <= 80
    lines = shown.partition("Commands:\n")[2].splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


@pytest.mark.parametrize("path", groups(typer.main.get_command(cli.app)), ids=" ".join)
def test_help_does_not_truncate_summaries(path: tuple[str, ...]) -> None:
    shown = summaries(cli.app, *path)
    assert len(shown) >= 3
    assert {name: text for name, text in shown.items() if not text.endswith(".")} == {}
    assert {name: text for name, text in shown.items() if "..." in text or "…" in text} == {}


def test_a_truncated_summary_is_found() -> None:
    """Negative control of the test above."""
    app = typer.Typer(rich_markup_mode=None)

    def short() -> None:
        """A summary."""

    def long() -> None:
        """A summary of very many words, more of them than a line of a terminal has room for."""

    app.command("short")(short)
    app.command("long")(long)
    shown = summaries(app)
    assert shown["short"] == "A summary."
    assert shown["long"].endswith("...")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user of bash."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["hourglass"])
    # Typer looks for the shell among the parents of this process.
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    return tmp_path


def test_completion_is_installed_for_a_shell(shell: Path) -> None:
    done = CliRunner().invoke(cli.app, ["--install-completion"], prog_name="hourglass")
    assert done.exit_code == 0
    (script,) = shell.glob(".bash_completions/*")
    assert str(script) in (shell / ".bashrc").read_text()
    assert "complete -o default -F _hourglass_completion hourglass" in script.read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mo", ["models"]),
        ("models pr", ["promote"]),
        ("init t", ["train", "tune"]),
        ("init tune --recipe h2o", ["h2o_architecture", "h2o_sparsity"]),
        ("init --recipe digi", ["digits"]),
        ("train --fr", ["--fresh"]),
        ("no-such", []),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(
    line: str, expected: list[str], shell: Path
) -> None:
    environment = {
        "_HOURGLASS_COMPLETE": "complete_bash",
        "COMP_WORDS": f"hourglass {line}",
        "COMP_CWORD": str(len(line.split())),
    }
    done = CliRunner().invoke(cli.app, [], prog_name="hourglass", env=environment)
    assert done.output.split() == expected


@pytest.mark.parametrize(
    "command",
    [
        ["jobs", "list", "--address", "http://127.0.0.1:1"],
        ["cluster", "status"],
        ["data", "inspect", "{folder}"],
        ["data", "manifest", "{folder}", "--out", "{folder}/manifest.json"],
        ["leaderboard", "none"],
    ],
    ids=" ".join,
)
def test_commands_without_a_model_do_not_wait_for_pytorch(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "rows.parquet")
    done = hourglass(*(word.format(folder=tmp_path) for word in command))
    code, imported = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if command[0] == "data" else 1 if command[0] == "cluster" else 2), done.stderr
    assert not {"torch", "ray", "mlflow"} & {*imported}


@pytest.mark.parametrize("wrong", ["--versoin", "no-such-command"])
def test_usage_errors_exit_2_without_a_traceback(wrong: str) -> None:
    done = hourglass(wrong)
    assert json.loads(done.stdout)[0] == 2
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr


def planted(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["hourglass", *args])
    cli.main()


ERRORS = [
    (SpecError("job.yaml: 1 mistake\n  ..."), 2, "error: job.yaml: 1 mistake\n  ...\n"),
    (DataError("a.parquet: no column 'x'."), 2, "error: a.parquet: no column 'x'.\n"),
    (TrainingError("step 7: loss is NaN"), 1, "error: step 7: loss is NaN\n"),
    (
        WriteError(28, "No space left on device", "/a.html"),
        1,
        "error: /a.html: cannot be written (No space left on device); existing content is kept\n",
    ),
    (OSError(30, "Read-only file system", "/log"), 1, "error: /log: Read-only file system\n"),
    (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (Terminated(), 143, "interrupted\n"),
]


@pytest.mark.parametrize(
    ("error", "code", "line"), ERRORS, ids=[type(e).__name__ for e, _, _ in ERRORS]
)
def test_errors_are_sentences_with_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: BaseException, code: int, line: str
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process goes on
    with pytest.raises(SystemExit) as stop:
        planted(monkeypatch, error)
    assert stop.value.code == code
    assert capsys.readouterr() == ("", line)


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HourglassError, match="no column"):
        planted(monkeypatch, DataError("no column"), "--debug", "check")


class Noted(KeyboardInterrupt):
    """With a word of who knows what was kept."""

    def __init__(self) -> None:
        self.add_note("nothing was kept")


INTERRUPTED = [
    (KeyboardInterrupt, ["train", "job.yaml"], 130, "interrupted; the same command resumes\n"),
    (KeyboardInterrupt, ["tune", "job.yaml"], 130, "interrupted; the same command resumes\n"),
    (Terminated, ["score", "job.yaml"], 143, "interrupted; the same command resumes\n"),
    (
        KeyboardInterrupt,
        ["train", "--fresh", "job.yaml"],
        130,
        "interrupted; the same command without --fresh resumes\n",
    ),
    (
        KeyboardInterrupt,
        ["score", "--fresh", "job.yaml"],
        130,
        "interrupted; the same command resumes\n",
    ),
    (Noted, ["train", "--fresh", "job.yaml"], 130, "interrupted; nothing was kept\n"),
    (KeyboardInterrupt, ["check", "job.yaml"], 130, "interrupted\n"),
    (KeyboardInterrupt, ["cluster", "status"], 130, "interrupted\n"),
]


@pytest.mark.parametrize(("stop", "command", "code", "line"), INTERRUPTED)
def test_an_interrupted_command_says_what_becomes_of_the_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    stop: type[BaseException],
    command: list[str],
    code: int,
    line: str,
) -> None:
    """And later signals do not change its exit code."""

    def interrupt(*_: Any) -> Any:
        raise stop

    handled: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr("hourglass.config.errors.read_yaml", interrupt)
    monkeypatch.setattr("hourglass.config.files.load_kind", interrupt)
    monkeypatch.setattr("hourglass.cluster.nodes.find", interrupt)
    monkeypatch.setattr(sys, "argv", ["hourglass", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr() == ("", line)
    assert handled == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}


@pytest.mark.parametrize("where", ["typer.main.get_command", "typer.core.TyperGroup.parse_args"])
@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_an_interruption_before_the_command_begins_has_the_same_words(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, stop: type[BaseException], code: int, where: str
) -> None:
    """While Typer builds its commands, and while it reads the words of the line."""

    def interrupt(*_: Any, **__: Any) -> Any:
        raise stop

    handled: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr("hourglass.cli.raise_on_sigterm", lambda: None)
    monkeypatch.setattr(where, interrupt)
    monkeypatch.setattr(sys, "argv", ["hourglass", "check", "job.yaml"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr() == ("", "interrupted\n")
    assert handled == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}


@pytest.mark.parametrize(
    ("metrics", "printed"),
    [
        ({"holdout_mse": 0.25, "holdout_fvu": 0.5}, "holdout_fvu  0.500000"),
        ({"holdout_mse": 0.25}, "holdout_fvu  undefined (the held-out rows have no variance)"),
        ({}, None),
    ],
)
def test_train_says_where_fvu_is_undefined(
    metrics: dict[str, float],
    printed: str | None,
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hourglass import artifact, run
    from hourglass.cli import runs
    from hourglass.training.launch import Outcome

    manifest = artifact.load(str(tiny_artifact)).manifest
    tree = manifest.model_dump(mode="json", by_alias=True) | {"metrics": metrics}
    found = Outcome("there", artifact.Manifest.model_validate(tree), "digest", already=False)
    recorded = run.Finished("id", None, "recorded")
    monkeypatch.setattr(run, "train", lambda *_: run.Trained(found, recorded))
    monkeypatch.setattr(runs, "connected", lambda _: contextlib.nullcontext())
    job = tmp_path / "job.yaml"
    job.write_text("kind: train\ndata: {uri: x, features: {vector: x}}\nmodel: {preset: anomaly}\n")
    runs.train(str(job))
    lines = [line for line in capsys.readouterr().out.splitlines() if "fvu" in line]
    assert lines == ([printed] if printed else [])
