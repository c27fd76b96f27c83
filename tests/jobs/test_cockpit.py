"""MLflow in a browser, from the link that a job prints: what a person sees of a sweep, of a run and its curves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from browser import Browser, missing, shoal_ui
from running import Finished, Place, Server, eventually

pytestmark = [pytest.mark.skipif(missing() is not None, reason=str(missing())), pytest.mark.long]

SWEEP = ("tune.yaml", "model.width=16,64", "tune.num_samples=2", "train.epochs=4")
TRAINING = ("digits.yaml", "scale.num_workers=0", "train.epochs=4", "run_name=one")
HEADERS = "return [...document.querySelectorAll('[role=columnheader]')].filter(one => one.innerText.trim())"
IN_ORDER = ".sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x).map(one => one.innerText.trim())"


@dataclass
class Cockpit:
    """A browser on the store of a sweep and a training."""

    browser: Browser
    address: str
    sweep: Finished
    training: Finished

    def open(self, page: str) -> None:
        self.browser.open(f"{self.address}/{page}?workflowType=machine_learning")


def link(done: Finished) -> str:
    """Return the link that a job printed."""
    (found,) = re.findall(r"https?://\S+/#/\S+", done.out)
    return str(found)


@pytest.fixture(scope="module")
def cockpit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cockpit]:
    place = Place(tmp_path_factory.mktemp("cockpit"), {})
    sweep, training = place.run("tune", *SWEEP), place.run("train", *TRAINING)
    assert sweep.code == training.code == 0, sweep.err + training.err
    with shoal_ui(place.path) as address, Browser(1600, 1400) as browser:
        yield Cockpit(browser, address, sweep, training)


def test_the_link_of_a_sweep_leads_to_its_trials_best_first(cockpit: Cockpit, tmp_path: Path):
    printed = link(cockpit.sweep)
    assert printed.startswith("http://127.0.0.1:5000/#/")  # where `shoal ui`, the line before, shows it
    assert re.search(r"look at it: make .*ui .*\n  then http", cockpit.sweep.out)
    browser = cockpit.browser
    browser.open(printed.replace("http://127.0.0.1:5000", cockpit.address))
    browser.wait(lambda text: "5 matching runs" in text, "the table has the sweep and its trials")
    assert browser.run("return location.href").startswith(f"{cockpit.address}/#/experiments/1/runs?")
    text = browser.text()
    assert "Sort: best/val_loss" in text
    headers = browser.run(HEADERS + IN_ORDER)
    assert headers.index("model.width") < headers.index("optim.lr") < headers.index("best/val_loss")
    assert headers.index("best/val_loss") < headers.index("best/val_accuracy")
    assert len(set(headers)) <= 10  # with "Parameters" and "Metrics" above them
    shown = re.findall(r"^(t\d+) width=(\d+) lr=([\d.e-]+)$", text.partition("Run Name")[2], re.MULTILINE)
    ranked = cockpit.sweep.result["rows"]
    assert [name for name, *_ in shown] == [row["name"] for row in ranked]
    assert [float(lr) for *_, lr in shown] == pytest.approx(
        [r["params"]["optim.lr"] for r in ranked], rel=0.06
    )
    browser.picture(tmp_path / "table.png")


def test_the_experiment_is_described_by_its_best_runs(cockpit: Cockpit):
    cockpit.open("#/experiments/1/runs")
    best = cockpit.sweep.result["best"]
    text = cockpit.browser.wait(lambda text: "best first" in text, "the description is there")
    (row,) = re.findall(rf"^{best['trial']} width=.*\t.*$", text, re.MULTILINE)
    assert f"{best['value']:.5g}" in row
    links = cockpit.browser.run("return [...document.querySelectorAll('a')].map(one => one.href)")
    assert any(best["mlflow_run_id"] in one and "machine_learning" in one for one in links)


def test_a_sweep_is_described_with_picture_table_links_model_and_command(cockpit: Cockpit):
    result = cockpit.sweep.result
    cockpit.open(f"#/experiments/1/runs/{result['mlflow_run_id']}")
    text = cockpit.browser.wait(lambda text: "Again, or on" in text, "the sweep is described")
    assert "Registered as digits, version 1, which is the champion" in text
    assert re.search(rf"^{result['best']['trial']}\t{result['best']['value']:.5g}\t", text, re.MULTILINE)
    assert re.search(r"Again, or on after an interrupt: python \S+/tune.py tune.yaml model.width=16,64", text)
    pictures = "return [...document.querySelectorAll('img')].filter(one => one.src.includes('get-artifact'))"
    loaded = f"{pictures}.map(one => one.naturalWidth > 100)"
    eventually(lambda: cockpit.browser.run(loaded) == [True], 30, "the picture is shown")
    (report,) = cockpit.browser.run(
        "return [...document.querySelectorAll('a')].filter(one => one.innerText == 'report').map(one => one.href)"
    )
    cockpit.browser.open(report)
    cockpit.browser.wait(lambda text: "report.html" in text, "the report is there")


def test_the_charts_of_a_run_begin_with_its_losses(cockpit: Cockpit):
    experiment = link(cockpit.training).partition("experiments/")[2].partition("/")[0]
    cockpit.open(f"#/experiments/{experiment}/runs/{cockpit.training.result['mlflow_run_id']}/model-metrics")
    text = cockpit.browser.wait(lambda text: "Loss/validation" in text, "the curves are drawn")
    at = [text.index(part) for part in ("\nLoss\n", "(Loss/train)", "(Loss/validation)", "\nbest\n")]
    assert at == sorted(at)


def test_the_link_of_a_job_with_a_server_leads_there(place: Place, server: Server):
    done = place.run("train", *TRAINING, f"track.tracking_uri={server.uri}")
    assert done.code == 0, done.err
    assert link(done).startswith(f"{server.uri}/#/")
    with Browser() as browser:
        browser.open(link(done))
        browser.wait(lambda text: "1 matching run" in text and "\none\n" in text, "the table has the run")
