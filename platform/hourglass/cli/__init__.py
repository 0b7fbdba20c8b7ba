"""The command line. Heavy imports happen inside commands, so that `--help` responds at once."""

import contextlib
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hourglass import __version__
from hourglass.cli import cluster, data, models, render, report, runs, serve, sweeps, tasks
from hourglass.errors import HourglassError
from hourglass.process import Terminated, raise_on_sigterm


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hourglass {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks of errors.")] = False,
) -> None:
    """Train, register, score with and serve autoencoders on Ray."""


RESUMED = ("train", "tune", "score")
"""Commands that resume when they are run again."""


def interrupted(stop: KeyboardInterrupt, then: str = "") -> SystemExit:
    """Print the last line; the exit of this process with the code of the signal."""
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)  # there is nothing left to interrupt
    with contextlib.suppress(OSError):  # the reader has closed the pipe
        typer.echo(f"interrupted{then}", err=True)
    return SystemExit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


class Commands(TyperGroup):
    """Runs a command; if it is interrupted, the last line states whether it can be resumed."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Typer's, which prints nothing for Ctrl-C and gives SIGTERM the exit code of Ctrl-C."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt as stop:
            raise interrupted(stop) from None

    def invoke(self, ctx: Any) -> Any:
        """Typer's, which prints nothing for Ctrl-C, or text that depends on the version."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            resumes = ctx.invoked_subcommand in RESUMED
            apart = "--fresh" in sys.argv and ctx.invoked_subcommand != "score"
            default = f"the same command{' without --fresh' if apart else ''} resumes"
            notes = getattr(stop, "__notes__", [default])  # from code that knows the state on disk
            raise interrupted(stop, f"; {notes[-1]}" if resumes else "") from None


app = typer.Typer(
    name="hourglass",
    cls=Commands,
    callback=options,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    runs.demo,
    runs.init,
    runs.check,
    runs.train,
    runs.score,
    sweeps.tune,
    sweeps.leaderboard,
    report.report,
    report.plot_model,
    tasks.encode,
    tasks.decode,
    tasks.denoise,
    tasks.similar,
    tasks.classify_probe,
    tasks.generate,
    serve.serve,
    cluster.submit,
    render.render,
    models.ui,
    runs.schema,
):
    app.command()(command)

GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": (
        "Inspect, pin and generate Parquet shards.",
        {"inspect": data.inspect, "manifest": data.manifest, "make": data.make},
    ),
    "models": (
        "List, show and promote registered models.",
        {
            "list": models.list_models,
            "show": models.show,
            "promote": models.promote,
            "sync": models.sync,
        },
    ),
    "jobs": (
        "List, follow and stop jobs on a cluster.",
        {"list": cluster.list_jobs, "logs": cluster.logs, "stop": cluster.stop_job},
    ),
    "cluster": (
        "Start, join, list and stop clusters, secured by a token.",
        {
            "start": cluster.start,
            "join": cluster.join,
            "certify": cluster.certify,
            "status": cluster.status,
            "leave": cluster.leave,
            "stop": cluster.stop,
        },
    ),
}
for group, (about, members) in GROUPS.items():
    typed = typer.Typer(help=about, no_args_is_help=True)
    app.add_typer(typed, name=group)
    for name, member in members.items():
        typed.command(name)(member)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print our warnings as plain lines; hide deprecation warnings of libraries."""
    if category is UserWarning:
        with contextlib.suppress(OSError):  # a closed pipe must not fail the command
            typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line: exit code 2 for user errors, 1 for failures, 128 + N for a signal."""
    raise_on_sigterm()
    warnings.showwarning = _warn
    try:
        app()
    except HourglassError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        from hourglass.storage import trouble

        message, code = trouble(error), 2
        if message is None and isinstance(error, OSError):  # of a disk, with no context added
            where = f"{error.filename}: " if error.filename else ""
            message, code = f"{where}{error.strerror or error}", 1
        if message is None or "--debug" in sys.argv:
            raise
        typer.echo(f"error: {message}", err=True)
        sys.exit(code)
    except KeyboardInterrupt as stop:
        raise interrupted(stop) from None
