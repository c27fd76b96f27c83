"""`jobs/serve.py` as its users run it: from a trained run to an answer, a new version, and an end with a result."""

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from browser import Browser, missing
from running import Place, eventually, free_port
from trained_model import register
from unit.serving.conftest import Client

ROW = {f"pixel_{y}_{x}": [float((3 * x + 5 * y) % 17)] for y in range(8) for x in range(8)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two registered versions of a model of digits."""
    place = Place(tmp_path_factory.mktemp("trained"), {})
    for name, seed in (("one", 0), ("two", 1)):
        register(place.path, name, "digits", "sklearn:digits", seed=seed)
    set_alias(place, 1)
    return place


def set_alias(place: Place, version: int) -> None:
    from shoal.registry.client import connect

    connect(f"sqlite:///{place.path}/mlflow.db").set_registered_model_alias("digits", "live", str(version))


@contextlib.contextmanager
def serving(place: Place, *arguments: str) -> Iterator[tuple[Client, "subprocess.Popen[str]"]]:
    """Run the job until the test is done; what it printed is in `process.out` then."""
    port = free_port()
    process = place.start("serve", *arguments, f"serve.port={port}")
    client = Client(port)

    def is_ready() -> bool:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError):
            return client.get("/ready")[0] == 200
        return False

    try:
        eventually(is_ready, 240, "the server is ready")
        yield client, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        process.out, process.err = out, err  # type: ignore[attr-defined]


def test_a_run_folder_is_served_until_a_signal_and_what_was_served_is_recorded(trained: Place) -> None:
    with serving(trained, "one") as (client, process):
        status, answer, _ = client.post("/predict", ROW)
        assert (status, client.post("/predict", {})[0]) == (200, 422)
        assert answer["model"]["name"] == "one"
        assert "shoal_requests_total" in client.get("/metrics")[1]
    assert process.returncode == 0, process.err  # type: ignore[attr-defined]
    last = process.out.strip().splitlines()[-1]  # type: ignore[attr-defined]
    result = json.loads(Path(last.removeprefix("result: ")).read_text())
    assert result["requests"] == {"200": 1, "422": 1}
    assert (result["rows"], result["is_delivered"], result["status"]) == (1, True, "FINISHED")


def test_an_alias_that_moves_is_taken_over_without_a_failed_request(trained: Place) -> None:
    set_alias(trained, 1)
    with (
        serving(trained, "models:/digits@live", "serve.look_every_s=0.5") as (client, _),
        Load(client) as load,
    ):
        assert client.get("/ready")[1]["models"]["digits"]["version"] == "1"
        for version in ("2", "1", "2"):
            set_alias(trained, int(version))
            eventually(lambda v=version: load.last == v, 60, f"version {version} answers")  # type: ignore[misc]
    assert load.statuses.keys() == {200}
    assert load.versions.keys() == {"1", "2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL"]),
        (["runs/none"], ["'runs/none' is not known"]),
        (["one", "serve.port=99999"], ["serve.port=99999"]),
        (["one", "serve.weights=[1,2]"], ["serve.weights=[1.0, 2.0] for 1 models"]),
        (["one", "serve.replica=1"], ["did you mean 'serve.replicas'"]),
        (["models:/digits@none"], ["models:/digits@none", "is not known"]),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    trained: Place, arguments: list[str], words: list[str]
) -> None:
    done = trained.run_in_process("serve", *arguments)
    assert (done.code, len(done.errors), len(done.err.splitlines())) == (2, 1, 1), done.err
    assert all(word in done.errors[0] for word in words), done.errors


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_person_tries_the_model_in_a_browser(trained: Place) -> None:
    with serving(trained, "one") as (client, _), Browser() as browser:
        browser.open(f"{client.address}/")
        browser.wait(lambda text: "pixel_7_7" in text, "the form is there")
        browser.run("document.getElementById('field-pixel_0_0').value = ''")
        browser.run("document.getElementById('predict').click()")
        browser.wait(lambda text: " %" in text, "probabilities are shown")
        browser.run("document.getElementById('field-pixel_0_0').value = 'x'")
        browser.run("document.getElementById('predict').click()")
        browser.wait(
            lambda text: "row 0, column 'pixel_0_0': 'x' is not a number" in text, "the refusal is shown"
        )
        assert browser.run("return document.getElementById('field-pixel_0_0').className") == "bad"
        browser.open(f"{client.address}/docs")
        text = browser.wait(lambda text: "POST /invocations" in text, "the routes are listed")
        assert f"SERVER={client.address}" in text


@pytest.mark.long
def test_replicas_that_are_killed_and_versions_that_are_replaced_fail_no_request(
    trained: Place, cluster: dict[str, str]
) -> None:
    set_alias(trained, 1)
    place = Place(trained.path, {"RAY_ADDRESS": cluster["address"]})
    settings = ("serve.replicas=2", "serve.cpus_per_replica=0.5", "serve.look_every_s=1")
    with (
        serving(place, "models:/digits@live", *settings) as (client, process),
        Load(client, threads=4) as load,
    ):
        for version in ("2", "1", "2"):
            kill_a_replica()
            set_alias(trained, int(version))
            eventually(lambda v=version: load.last == v, 120, f"version {version} answers")  # type: ignore[misc]
        eventually(lambda: load.statuses.total() >= 10_000, 600, "10,000 requests are answered")
    assert load.statuses.keys() == {200}, load.statuses
    assert process.returncode == 0, process.err  # type: ignore[attr-defined]


def kill_a_replica() -> None:
    replicas = [
        p
        for p in psutil.process_iter(["cmdline"])
        if re.search("ServeReplica:shoal-", " ".join(p.info["cmdline"] or []))
    ]
    assert replicas
    replicas[0].kill()


class Load:
    """Requests one after another from threads; the statuses and versions that came back."""

    def __init__(self, client: Client, threads: int = 2) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self.last, self._client, self._is_over = "", client, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                status, _, headers = self._client.post("/predict", ROW)
                self.last = headers["Shoal-Version"]
                self.versions[self.last] += 1
            except OSError:
                status = 0
            self.statuses[status] += 1
            time.sleep(0.005)
