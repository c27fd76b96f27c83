"""The application of deploy/kubernetes/serve.yaml on a real Ray Serve: its token, its replicas, an alias that moves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from running import RAY_ENV, ROOT, end, eventually, free_port, ray_cluster
from trained_model import register
from unit.serving.conftest import Client

pytestmark = pytest.mark.long

MANIFEST = ROOT / "deploy" / "kubernetes" / "serve.yaml"
ROW = {f"pixel_{y}_{x}": [float((3 * x + 5 * y) % 17)] for y in range(8) for x in range(8)}
TOKEN = {"Authorization": "Bearer of-the-server"}


def set_alias(folder: Path, version: int) -> None:
    from shoal.registry.client import connect

    connect(f"sqlite:///{folder}/mlflow.db").set_registered_model_alias("digits", "champion", str(version))


def settings(folder: Path, port: int) -> dict[str, Any]:
    """Return what the manifest deploys, with a port that is free here, and a store and CPUs that are there."""
    found: dict[str, Any] = yaml.safe_load(yaml.safe_load(MANIFEST.read_text())["spec"]["serveConfigV2"])
    found["http_options"] = {"host": "127.0.0.1", "port": port}
    (one,) = found["applications"]
    one["args"]["serve"] = {"cpus_per_replica": 0.5, "look_every_s": 0.5}
    one["args"]["track"] = {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    one["deployments"][0]["ray_actor_options"] = {"num_cpus": 0.5}
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    import psutil

    for name, seed in (("one", 0), ("two", 1)):
        register(tmp_path, name, "digits", "sklearn:digits", seed=seed)
    set_alias(tmp_path, 1)
    port = free_port()
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(settings(tmp_path, port)))
    own = {"PYTHONPATH": str(ROOT / "platform"), "SHOAL_SERVE_TOKEN": "of-the-server"}
    with ray_cluster(**own) as cluster, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", "serve.yaml", "--address", cluster["address"]],
            cwd=tmp_path,
            env={**os.environ, **RAY_ENV, **own},
            stdout=log,
            stderr=log,
        )
        try:
            client = Client(port)

            def is_ready() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    return bool(client.get("/ready")[0] == 200)
                except OSError:
                    return False

            eventually(is_ready, 120, "Ray Serve answers")
            yield client
        finally:
            end(psutil.Process(process.pid))


def test_a_service_answers_those_with_its_token_and_takes_a_new_version_over(
    client: Client, tmp_path: Path
) -> None:
    assert client.post("/predict", ROW)[0] == 401
    status, answer, headers = client.post("/predict", ROW, **TOKEN)
    assert (status, headers["Shoal-Version"]) == (200, "1"), answer
    assert client.post("/predict", {}, **TOKEN)[0] == 422
    set_alias(tmp_path, 2)

    def is_taken_over() -> bool:
        status, _, headers = client.post("/predict", ROW, **TOKEN)
        assert status == 200
        return bool(headers["Shoal-Version"] == "2")

    # Either replica may answer: ten answers in a row are of the new version.
    eventually(lambda: all(is_taken_over() for _ in range(10)), 60, "the new version answers")
