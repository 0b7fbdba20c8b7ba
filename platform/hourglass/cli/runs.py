"""Commands on job files: check, schema, init, train, score, and the demo."""

import os
from typing import Annotated

import typer

from hourglass import recipes
from hourglass.cli.arguments import File, Overrides, connected, not_in_an_artifact


def check(
    file: File,
    overrides: Overrides = None,
    data: Annotated[
        bool, typer.Option("--data", help="Also check the job against its shards.")
    ] = False,
) -> None:
    """Validate a job or serve file and report all mistakes.

    Prints the file with overrides applied and defaults filled in.
    """
    import yaml

    from hourglass.config import errors, files, serve
    from hourglass.errors import SpecError

    if serve.is_serve_file(errors.read_yaml(file)[0]):
        if data:
            raise SpecError(f"{file}: a serve file has no shards to check; remove --data")
        tree = serve.load(file, overrides or ()).model_dump(mode="json", exclude_none=True)
        typer.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)
        return
    job = files.load(file, overrides or ())
    shards = ""
    if data:
        from hourglass.check import against_shards
        from hourglass.settings import Settings

        shards = f"# {against_shards(file, job, Settings())}\n"
    typer.echo(yaml.safe_dump(files.dump(job), sort_keys=False) + shards, nl=False)


def schema(
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="Folder to write to.", callback=not_in_an_artifact),
    ] = "docs/schema",
) -> None:
    """Write the JSON Schemas of job and serve files.

    Editors use them to complete and validate the files.
    """
    import json
    from typing import Any

    from pydantic import TypeAdapter

    from hourglass import storage
    from hourglass.config import serve, train, tune

    every: dict[str, TypeAdapter[Any]] = {
        "train": train.TRAIN,
        "score": train.SCORE,
        "tune": tune.TUNE,
        "serve": serve.SERVE,
    }
    _require_schemas([storage.join(folder, f"{name}.json") for name in every])
    for name, adapter in every.items():
        content = json.dumps(adapter.json_schema(by_alias=True), indent=1) + "\n"
        storage.write(storage.join(folder, f"{name}.json"), content.encode())
        typer.echo(storage.join(folder, f"{name}.json"))


def _recipe_names(context: typer.Context, incomplete: str) -> list[str]:
    """Completions of --recipe."""
    words = [*context.args, context.params.get("kind")]  # an incomplete line is not parsed
    kind: recipes.Kind = next((word for word in words if word in recipes.FILES), "train")
    return [name for name in recipes.names(kind) if name.startswith(incomplete)]


def init(
    kind: Annotated[
        recipes.Kind,
        typer.Argument(metavar="|".join(recipes.FILES), help="Command that the file is for."),
    ] = "train",
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="File to write; default: named after the command."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Recipe to copy.", autocompletion=_recipe_names),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the recipes of this command.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a commented YAML file to start from.

    Its JSON Schema is written next to it, so that editors complete and validate the file.
    """
    if show:
        for name in recipes.names(kind):
            typer.echo(f"{name:<19} {recipes.purpose(recipes.find(kind, name))}")
        return
    found = recipes.find(kind, recipe)
    file = not_in_an_artifact(file or f"{kind}.yaml")
    from hourglass import storage
    from hourglass.errors import DataError

    schema = f"{kind}.schema.json"
    beside = storage.join(os.path.dirname(file), schema) if os.path.dirname(file) else schema
    if not force and storage.exists(file):
        raise DataError(f"{file}: exists; choose another file, or replace it with --force")
    _require_schemas([beside])
    storage.write(beside, (recipes.FOLDER / "schema" / f"{kind}.json").read_bytes())
    storage.write(file, recipes.standalone(found, schema).encode())
    typer.echo(f"wrote {file} and {beside}; `hourglass check {file}` validates it")


def _require_schemas(paths: list[str]) -> None:
    """Raise DataError naming the files that exist and are not JSON Schemas."""
    import json

    from hourglass import storage
    from hourglass.errors import DataError

    def is_other(path: str) -> bool:
        try:
            return not {"type", "properties"} <= json.loads(storage.read(path)).keys()
        except FileNotFoundError:
            return False
        except (ValueError, AttributeError, RecursionError):
            return True

    others = [path for path in paths if is_other(path)]
    if others:
        raise DataError(
            "\n".join(
                f"{path}: exists and is not a JSON Schema; move it, or choose another folder"
                for path in others
            )
        )


def train(
    file: File,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the progress of earlier executions.")
    ] = False,
) -> None:
    """Train the model of a job file.

    The same command resumes an interrupted run, and does nothing if the run is complete.
    """
    from hourglass.config.files import load_kind
    from hourglass.config.train import TrainJob

    job = load_kind(TrainJob, file, overrides or ())
    from hourglass.settings import Settings

    settings = Settings()
    with connected(settings):
        from hourglass import run

        trained = run.train(job, settings, fresh)
    found = trained.outcome
    if found.already:
        typer.echo(f"run {job.run_name} is already complete; --fresh trains it again")
    for name in ("train_mse", "holdout_mse", "holdout_fvu"):
        if name in found.manifest.metrics:
            typer.echo(f"{name:<12} {found.manifest.metrics[name]:.6f}")
        elif name == "holdout_fvu" and "holdout_mse" in found.manifest.metrics:
            typer.echo(f"{name:<12} undefined (the held-out rows have no variance)")
    if found.manifest.ensemble is not None:
        made, agreement = found.manifest.ensemble, found.manifest.metrics.get("rank_agreement")
        known = "none" if agreement is None else f"{agreement:.4f}"
        typer.echo(f"members      {made.members}, primary {made.primary}; rank agreement {known}")
    typer.echo(f"threshold    {found.manifest.calibration.threshold:.6f}")
    typer.echo(f"artifact     {found.uri} ({found.digest[:12]})")
    typer.echo(f"tracking     {trained.record.note}")
    if trained.record.registered is not None:
        typer.echo(f"registered   {trained.record.registered.summary}")


def score(
    file: File,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace the contents of the output.")
    ] = False,
) -> None:
    """Write the codes, hashes and anomaly scores of rows.

    The same command resumes an interrupted run.
    """
    from hourglass.config.files import load_kind
    from hourglass.config.train import ScoreJob

    job = load_kind(ScoreJob, file, overrides or ())
    from hourglass.settings import Settings

    settings = Settings()
    with connected(settings):
        from hourglass import run

        model, done = run.score(job, settings, fresh)
    share = done.anomalies / max(1, done.rows)
    typer.echo(f"model        {model.name} {model.version or ''} ({model.digest[:12]})")
    typer.echo(f"rows         {done.rows} scored, {done.dropped} dropped")
    typer.echo(f"anomalies    {done.anomalies} ({share:.2%}) above {done.threshold:.6f}")
    typer.echo(f"mse          {done.mse:.6f} in model space, {done.range_mse:.6f} in range space")
    typer.echo(f"output       {done.uri}: {done.parts} parts, {done.written} written now")


def demo() -> None:
    """Run every step on real data, from shards to endpoints.

    It writes Parquet shards, trains on two workers, registers the model, scores rows in batch, and
    calls an HTTP endpoint.
    """
    from hourglass.demo import demo as show
    from hourglass.settings import Settings

    show(Settings())
