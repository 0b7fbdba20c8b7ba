"""A real browser sees a run's metrics and the registered champion in the page of `hourglass ui`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hourglass import tracking
from hourglass.config import files
from hourglass.settings import Settings
from hourglass.tracking import registry

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)
WAIT_S = 60

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed (apt)"
)


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, save_artifact: Callable[..., str]
) -> tuple[Settings, str]:
    """A home with one finished run whose model is champion; and the run's id."""
    folder = tmp_path_factory.mktemp("ui")
    settings = Settings.model_validate({"home": folder / "home", "MLFLOW_TRACKING_URI": None})
    save_artifact(folder / "artifact")
    job = files.parse(
        {
            "kind": "train",
            "name": "digits",
            "data": {"uri": "/data/digits", "features": {"vector": "image"}},
            "model": {"network": {"widths": [7, 5]}},
            "track": {"experiment": "digits", "register": "hourglass-digits"},
        }
    )
    run = tracking.start(settings, job, {"name": "digits", "uri": "/data/digits"})
    for epoch, error in enumerate((0.75, 0.5, 0.3125)):
        run.log({"loss": 2 * error, "holdout_mse": error}, epoch)
    done = run.finish("finished", str(folder / "artifact"))
    assert done.run_id is not None, done.note
    registry.promote(settings, "hourglass-digits", "1")
    return settings, done.run_id


@pytest.fixture(scope="module")
def page(recorded: tuple[Settings, str]) -> Iterator[str]:
    """The address of `hourglass ui`, started as a user does; Ctrl-C must end it and its server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOURGLASS_HOME": str(recorded[0].root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ui = subprocess.Popen(
        [sys.executable, "-m", "hourglass.cli", "ui", "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert ui.stdout is not None
        assert ui.stdout.readline() == f"MLflow  http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        ui.send_signal(signal.SIGINT)
        code = ui.wait(30)
    assert code == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # nobody listens any more


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(WAIT_S)
    yield driver
    driver.quit()


def see(browser: Any, url: str, *texts: str) -> None:
    """Open `url` and wait until every one of `texts` is on the page."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(driver: Any) -> str:
        return str(driver.find_element(By.TAG_NAME, "body").text)

    browser.get(url)
    try:
        WebDriverWait(browser, WAIT_S).until(lambda b: all(text in shown(b) for text in texts))
    except TimeoutException:
        found = shown(browser)
        missing = [text for text in texts if text not in found]
        pytest.fail(f"{url}: not shown: {missing}; the page says: {found[:2000]}")
    finally:
        if folder := os.environ.get("HOURGLASS_SCREENSHOTS"):
            name = url.rsplit("/", 1)[-1].partition("?")[0]
            browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_the_registered_model_shows_version_and_champion(browser: Any, page: str) -> None:
    see(browser, f"{page}/#/models/hourglass-digits", "hourglass-digits", "Version 1", "champion")


def test_the_list_of_models_shows_it(browser: Any, page: str) -> None:
    see(browser, f"{page}/#/models", "hourglass-digits", "champion", "Version 1")


def test_the_run_shows_metrics_and_params(
    browser: Any, page: str, recorded: tuple[Settings, str]
) -> None:
    experiment = _experiment(recorded[0])
    url = f"{page}/#/experiments/{experiment}/runs/{recorded[1]}"
    see(browser, url, "holdout_mse", "0.3125", "loss", "0.625", "model.network.widths", "[7, 5]")


def _experiment(settings: Settings) -> str:
    from hourglass.tracking.mlflow import client

    return str(client(settings).get_experiment_by_name("digits").experiment_id)


def test_the_page_refuses_other_hosts_and_origins(page: str) -> None:
    """A page of the internet that knows the port must not reach the store (DNS rebinding, CSRF)."""
    import http.client

    address = page.removeprefix("http://")
    port = address.rpartition(":")[2]
    for headers, status in (
        ({"Host": address}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "10.0.0.5"}, 403),  # MLflow's own default takes every private address
        ({"Host": address, "Origin": "http://evil.example"}, 403),
        ({"Host": address, "Origin": f"http://localhost:{port}"}, 200),
    ):
        connection = http.client.HTTPConnection(address)
        route = "/api/2.0/mlflow/experiments/search"
        connection.putrequest("POST", route, skip_host=True)
        body = b'{"max_results": 5}'
        content = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**headers, **content}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        assert connection.getresponse().status == status, headers
