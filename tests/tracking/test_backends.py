"""Both tracking backends record the same and register the same: MLflow, and plain files."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hourglass import artifact, cli, tracking
from hourglass.errors import ArtifactError, RegistryError
from hourglass.settings import Settings
from hourglass.tracking import mlflow as mlflow_store
from hourglass.tracking import registry, tracker
from hourglass.tracking.backend import Logged
from hourglass.tracking.files import FilesTracker
from hourglass.tracking.outbox import Outbox
from hourglass.tuning import record
from hourglass.tuning.leaderboard import Entry, ranked

sys.path.insert(0, str(Path(__file__).parent))
from tracking_kit import DATASET, job

Save = Callable[..., str]
LOSSES = [(0, 1.0), (1, 0.5), (2, 0.25)]


@dataclass(frozen=True)
class Run:
    """What a backend stores of a run, read without the code that wrote it."""

    status: str
    params: dict[str, str]
    tags: dict[str, str]
    losses: list[tuple[int, float]]
    dataset: tuple[str, str]


@pytest.fixture(scope="module", params=["mlflow", "files"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp(request.param)
    return Settings.model_validate({"home": home, "tracking": request.param})


def read(settings: Settings, run_id: str) -> Run:
    if settings.tracking == "files":
        folder = settings.root / "tracking" / "runs" / run_id
        run = json.loads((folder / "run.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in lines]
        losses = [(epoch["step"], epoch["metrics"]["loss"]) for epoch in epochs]
        dataset = (run["dataset"]["name"], run["dataset"]["digest"][:36])
        params = {name: str(value) for name, value in run["params"].items()}
        return Run(run["status"], params, run["tags"], losses, dataset)
    client = mlflow_store.client(settings)
    run = client.get_run(run_id)
    losses = sorted((m.step, m.value) for m in client.get_metric_history(run_id, "loss"))
    data = run.inputs.dataset_inputs[0].dataset
    return Run(
        run.info.status, run.data.params, run.data.tags, losses, (data.name, data.digest[:36])
    )


def count(settings: Settings) -> int:
    """The number of runs."""
    if settings.tracking == "files":
        return len(list((settings.root / "tracking" / "runs").glob("*")))
    client = mlflow_store.client(settings)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    return len(client.search_runs(every))


def record_run(
    settings: Settings, name: str, uri: str | None, register: str | None = None
) -> tracking.Finished:
    run = tracking.start(settings, job(name, register, epochs=3), DATASET)
    for epoch, loss in LOSSES:
        run.log({"loss": loss}, epoch)
    return run.finish("finished" if uri else "failed", uri)


def test_a_run_is_recorded_and_its_artifact_registered(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    digest = save_artifact(tmp_path / "model")
    done = record_run(settings, "whole", str(tmp_path / "model"), "whole")
    title = registry.open_tracker(settings).title
    assert done.note == f"recorded in {title} as run {done.run_id}"
    found = read(settings, done.run_id or "")
    assert (found.status, found.losses) == ("FINISHED", LOSSES)
    assert found.params["model.network.widths"] == "[7, 5]"
    assert found.tags["hourglass.quantile"] == "0.99"
    assert found.dataset == ("digits", "d" * 36)
    version = registry.version(settings, "whole", "1")
    assert (version.digest, version.aliases) == (digest, ("challenger",))
    assert (version.metrics, version.run_id) == ({"holdout_mse": 0.25}, done.run_id)
    resolved = registry.resolve("models:/whole@challenger", settings)
    assert (resolved.digest, resolved.version) == (digest, "1")
    assert artifact.load(resolved.path, digest).digest == digest
    assert not Outbox.all(settings.root / "outbox")


def test_a_failed_run_registers_nothing(settings: Settings) -> None:
    done = record_run(settings, "failed", None, "failed")
    assert (read(settings, done.run_id or "").status, done.version) == ("FAILED", None)
    assert "failed" not in registry.names(settings)


def test_the_same_run_again_is_the_same_run_and_version(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "model")
    first = record_run(settings, "again", str(tmp_path / "model"), "again")
    runs = count(settings)
    second = record_run(settings, "again", str(tmp_path / "model"), "again")
    assert (second.run_id, second.version, count(settings)) == (first.run_id, "1", runs)
    assert read(settings, first.run_id or "").losses == LOSSES
    save_artifact(tmp_path / "other", seed=1)
    third = record_run(settings, "again", str(tmp_path / "other"), "again")
    assert (third.run_id, third.version) == (first.run_id, "2")
    assert [v.aliases for v in registry.versions(settings, "again")] == [("challenger",), ()]


def test_delivery_that_ends_after_any_event_is_continued(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    """As when the process is killed before it marks what it delivered: all comes a second time."""
    save_artifact(tmp_path / "model")
    made = job("cut", "cut", epochs=3)
    begin = {"kind": "begin", "time_ms": 1000, **tracker._who(made), "dataset": DATASET}
    events = [begin]
    for epoch, loss in LOSSES:
        metrics = {"loss": loss}
        events.append({"kind": "epoch", "time_ms": 2000, "epoch": epoch, "metrics": metrics})
    uri = str(tmp_path / "model")
    events.append({"kind": "artifact", "time_ms": 3000, "uri": uri, "register_as": "cut"})
    events.append({"kind": "end", "time_ms": 4000, "status": "finished"})
    runs = count(settings)
    for cut in range(1, len(events) + 1):
        writer = registry.open_tracker(settings).writer(None)
        for event in events[:cut]:
            writer.deliver(event)
    assert count(settings) == runs + 1
    found = read(settings, writer.run_id or "")
    assert (found.status, found.losses) == ("FINISHED", LOSSES)
    assert [v.version for v in registry.versions(settings, "cut")] == ["1"]


def test_a_champion_is_promoted_and_named(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    for seed in (0, 1):
        save_artifact(tmp_path / f"model{seed}", seed=seed)
        record_run(settings, f"promoted-{seed}", str(tmp_path / f"model{seed}"), "promoted")
    assert registry.champion(settings, "promoted") is None
    assert registry.promote(settings, "promoted", "1").before is None
    assert registry.promote(settings, "promoted", "2").before == "1"
    champion = registry.champion(settings, "promoted")
    assert champion is not None
    assert (champion.version, champion.aliases) == ("2", ("challenger", "champion"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/asekd@champion", "no registered model 'asekd'; there is "),
        ("models:/asked@champion", "'asked' has no alias 'champion'; there is challenger"),
        ("models:/asked/7", "'asked' has no version 7; there is 1"),
    ],
)
def test_what_is_not_there_is_named_beside_what_is(
    settings: Settings, save_artifact: Save, tmp_path: Path, uri: str, message: str
) -> None:
    save_artifact(tmp_path / "model")
    record_run(settings, "asked", str(tmp_path / "model"), "asked")
    with pytest.raises(RegistryError) as caught:
        registry.resolve(uri, settings)
    assert str(caught.value).startswith(message)


def test_files_that_were_changed_are_not_resolved(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    digest = save_artifact(tmp_path / "model", seed=9)
    record_run(settings, "changed", str(tmp_path / "model"), "changed")
    places = [settings.root / "mlartifacts", settings.root / "tracking" / "artifacts"]
    weights = [path for place in places for path in place.rglob(artifact.WEIGHTS)]
    content = (tmp_path / "model" / artifact.WEIGHTS).read_bytes()
    (stored,) = [path for path in weights if path.read_bytes() == content]
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="the stored files were changed"):
        registry.resolve("models:/changed@challenger", settings)
    stored.write_bytes(content)
    assert registry.resolve("models:/changed@challenger", settings).digest == digest


def test_a_report_is_attached_to_the_run_of_a_version(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "model", seed=3)
    done = record_run(settings, "attached", str(tmp_path / "model"), "attached")
    model = registry.resolve("models:/attached@challenger", settings)
    assert registry.attach(settings, model, "report.html", "<p>page</p>") == done.run_id
    found = [path.read_text() for path in settings.root.rglob("report.html")]
    assert found == ["<p>page</p>"]


def test_a_sweep_has_a_run_for_each_trial(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    from hourglass.config import files

    base = files.dump(job("base", "swept", epochs=3))
    tree = {"kind": "tune", "name": "swept", "base": base, "space": {"train.seed": {"grid": [1]}}}
    sweep: Any = files.parse(tree)
    folder = tmp_path / "sweep"
    place = folder / "trials" / "aaaa" / "artifact"
    save_artifact(place)
    manifest = place / artifact.MANIFEST
    text = json.loads(manifest.read_text())
    text["provenance"]["history"] = [{"epoch": step, "loss": loss} for step, loss in LOSSES]
    manifest.write_text(json.dumps(text))
    shared = {"status": "finished", "values": {"train.seed": 1}, "seconds": 2.0}
    good = Entry.model_validate({"trial": "aaaa", "holdout_mse": 0.25, **shared})
    values = {"train.seed": 2}
    bad = Entry.model_validate(
        {"trial": "bbbb", "status": "failed", "reason": "it was NaN", "values": values}
    )
    for _ in range(2):  # the same command again changes nothing
        recorder = record.start(settings, sweep, DATASET)
        recorder.ended(good, str(place))
        recorder.ended(bad, None)
        board = ranked("swept", "holdout_mse", [good, bad])
        done = recorder.finish(board, "finished", str(folder), "swept")
    assert set(done.run_ids) == {"aaaa", "bbbb"}
    trial = read(settings, done.run_ids["aaaa"])
    assert (trial.status, trial.losses, trial.params) == ("FINISHED", LOSSES, {"train.seed": "1"})
    assert done.version == "1"
    assert [entry.run_id for entry in done.board.entries] == [  # type: ignore[union-attr]
        done.run_ids["aaaa"],
        done.run_ids["bbbb"],
    ]


# -- plain files ------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    return Settings.model_validate({"home": tmp_path / "home", "tracking": "files"})


def test_a_line_that_a_kill_cut_short_is_written_again(plain: Settings) -> None:
    done = record_run(plain, "torn", None)
    path = FilesTracker(plain).run_folder(done.run_id or "") / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = record_run(plain, "torn", None)
    assert again.run_id == done.run_id
    assert read(plain, done.run_id or "").losses == LOSSES


def test_plain_files_need_no_mlflow(save_artifact: Save, tmp_path: Path) -> None:
    """A process that records, registers and resolves never imports it; the default does."""
    save_artifact(tmp_path / "model")
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from hourglass import tracking
from hourglass.settings import Settings
from hourglass.tracking import registry
from hourglass.config import files
made = files.parse({{
    "kind": "train", "name": "r", "data": {{"uri": "/data", "features": {{"vector": "image"}}}},
    "model": {{"network": {{"widths": [7, 5]}}}}, "track": {{"register": "m"}}}})
settings = Settings.model_validate({{"home": {str(tmp_path / "home")!r}, "tracking": sys.argv[1]}})
dataset = {{"name": "d", "uri": "/data", "digest": "d" * 64}}
run = tracking.start(settings, made, dataset)
print(run.finish("finished", {str(tmp_path / "model")!r}).version)
print(registry.resolve("models:/m@challenger", settings).version)
print("mlflow" in sys.modules)
"""
    for backend, imported in (("files", "False"), ("mlflow", "True")):
        done = subprocess.run(
            [sys.executable, "-c", program, backend], capture_output=True, text=True, timeout=120
        )
        assert done.stdout.split()[-3:] == ["1", "1", imported], done.stderr


def test_the_command_line_reads_plain_files(
    plain: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "model")
    record_run(plain, "listed", str(tmp_path / "model"), "listed")
    env = {"HOURGLASS_HOME": str(plain.root), "HOURGLASS_TRACKING": "files"}
    shown = CliRunner().invoke(cli.app, ["models", "list"], env=env)
    assert shown.exit_code == 0
    assert "listed" in shown.output
    assert "challenger" in shown.output
    assert not list(plain.root.glob("mlflow*"))
    page = CliRunner().invoke(cli.app, ["ui"], env=env)
    assert page.exit_code != 0
    assert "HOURGLASS_TRACKING=files: plain files have no web page" in str(page.exception)


@pytest.mark.parametrize("content", ["", "[]", '{"last": 1'])
def test_a_damaged_file_of_the_registry_is_named(
    plain: Settings, save_artifact: Save, tmp_path: Path, content: str
) -> None:
    save_artifact(tmp_path / "model")
    record_run(plain, "damaged", str(tmp_path / "model"), "damaged")
    path = plain.root / "tracking" / "models" / "damaged" / "model.json"
    path.write_text(content)
    with pytest.raises(RegistryError, match=r"model.json: not JSON|not a JSON object"):
        registry.versions(plain, "damaged")
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "ünï cödé", "x" * 100])
def test_any_name_of_a_model_stays_in_the_registry(plain: Settings, name: str) -> None:
    store = FilesTracker(plain)
    logged = Logged("id", "folder", "d" * 64, {"holdout_mse": 0.25}, ())
    with store.registering(name):
        assert store.add_version(name, "run", logged) == "1"
        store.set_alias(name, "champion", "1")
    assert store.names() == [name]
    (version,) = store.versions(name) or []
    assert (version.name, version.aliases) == (name, ("champion",))
    inside = {path.parent.parent for path in tmp_files(plain) if path.name == "model.json"}
    assert inside == {store.folder / "models"}


def tmp_files(settings: Settings) -> list[Path]:
    """Every file beside and below the project folder."""
    return [path for path in settings.root.parent.rglob("*") if path.is_file()]
