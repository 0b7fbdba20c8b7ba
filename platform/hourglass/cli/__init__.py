"""The command line. Heavy imports happen inside commands, so that `--help` answers at once."""

import contextlib
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hourglass import __version__
from hourglass.cli import cluster, data, models, report, runs, serve, sweeps, tasks
from hourglass.errors import HourglassError
from hourglass.process import Terminated, raise_on_sigterm


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hourglass {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Distributed autoencoders: Parquet shards in, registered models and scores out."""


RESUMED = ("train", "tune", "score")
"""Commands that go on where they were stopped when they are given again."""


def interrupted(stop: KeyboardInterrupt, then: str = "") -> SystemExit:
    """The end of this process with the code of the signal, once its last line is printed."""
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, signal.SIG_IGN)  # there is nothing left to interrupt
    with contextlib.suppress(OSError):  # nobody reads it
        typer.echo(f"interrupted{then}", err=True)
    return SystemExit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


class Commands(TyperGroup):
    """Runs one of them; when it is interrupted, its last line says what becomes of the work."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Typer's, which makes of Ctrl-C an exit code alone, and of SIGTERM that of Ctrl-C."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt as stop:
            raise interrupted(stop) from None

    def invoke(self, ctx: Any) -> Any:
        """Typer's, which makes of Ctrl-C an exit code alone, or other words in other versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            resumes = ctx.invoked_subcommand in RESUMED
            apart = "--fresh" in sys.argv and ctx.invoked_subcommand != "score"
            goes_on = f"the same command{' without --fresh' if apart else ''} resumes"
            said = getattr(stop, "__notes__", [goes_on])  # by who knows what is on the disk
            raise interrupted(stop, f"; {said[-1]}" if resumes else "") from None


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
    cluster.render,
    models.ui,
    runs.schema,
):
    app.command()(command)

GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": (
        "Look at Parquet shards, or make some.",
        {"inspect": data.inspect, "manifest": data.manifest, "make": data.make},
    ),
    "models": (
        "The registry.",
        {
            "list": models.list_models,
            "show": models.show,
            "promote": models.promote,
            "sync": models.sync,
        },
    ),
    "jobs": (
        "Jobs on a cluster.",
        {"list": cluster.list_jobs, "logs": cluster.logs, "stop": cluster.stop_job},
    ),
    "cluster": (
        "A secure Ray head on this machine.",
        {"start": cluster.start, "stop": cluster.stop, "status": cluster.status},
    ),
}
for group, (about, members) in GROUPS.items():
    typed = typer.Typer(help=about, no_args_is_help=True)
    app.add_typer(typed, name=group)
    for name, member in members.items():
        typed.command(name)(member)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as plain lines; those of libraries about their own future stay silent."""
    if category is UserWarning:
        with contextlib.suppress(OSError):  # it fails no work that nobody reads it
            typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line: exit 2 on what the user can mend, 1 on failures, 128 + N for a signal."""
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

        sentence, code = trouble(error), 2
        if sentence is None and isinstance(error, OSError):  # of a disk; nobody had more to say
            where = f"{error.filename}: " if error.filename else ""
            sentence, code = f"{where}{error.strerror or error}", 1
        if sentence is None or "--debug" in sys.argv:
            raise
        typer.echo(f"error: {sentence}", err=True)
        sys.exit(code)
    except KeyboardInterrupt as stop:
        raise interrupted(stop) from None
