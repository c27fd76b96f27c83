"""Shared by the unit tests: a preprocessing spec, an in-memory source, one torch thread."""

import json
import subprocess
import sys
import uuid

import numpy as np
import pytest
import torch

from curves import add_trial
from running import Server
from shoal.data.config import DataConfig
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.storage.records import Identity, Lease, Metadata, Result
from shoal.storage.run_folder import CONFIG, PICTURES, REPORTS, RunFolder

torch.set_num_threads(1)


@pytest.fixture
def preprocessing():
    """Make a preprocessing spec: `preprocessing(seed=1, is_classification=False, global_batch_size=8)`."""

    def make(seed=0, is_classification=True, is_ready=False, **data):
        return PreprocessingSpec(
            DataConfig(**({"global_batch_size": 8} | data)), seed, is_classification, is_ready
        )

    return make


@pytest.fixture
def rows():
    """120 rows: two numeric columns, one of text, a label that depends on them."""
    draw = np.random.default_rng(0)
    size = draw.normal(10.0, 3.0, 120)
    color = draw.choice(np.array(["red", "green", "blue"], dtype=object), 120)
    return {
        "size": size,
        "count": draw.integers(0, 50, 120),
        "color": color,
        "target": (size > 10).astype(np.int64),
    }


@pytest.fixture
def user_module(tmp_path, monkeypatch, request):
    """Write a user's module into the working directory and return its import name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        name = f"user_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """The URI of an empty folder, on a disk and in an object store."""
    if request.param == "local":
        return str(tmp_path / "place")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """A real MLflow server; it takes seconds to start, so there is one."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session", params=["sqlite", "http"])
def mlflow_store(request, tmp_path_factory):
    """The URI of a real store, an SQLite file and a server; making its tables takes two seconds, so it is made once."""
    from shoal.registry.client import connect

    if request.param == "http":
        return request.getfixturevalue("mlflow_server").uri
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    connect(uri)
    return uri


@pytest.fixture
def client(mlflow_store):
    from shoal.registry.client import connect

    return connect(mlflow_store)


METADATA_OF_A_RUN = {
    "params": {"optim.lr": 0.001, "model.name": "mlp"},
    "tags": {"shoal.num_workers": 2},
    "contexts": ["training"],
    "dataset": {
        "name": "sklearn:digits",
        "digest": "0123456789abcdef",
        "source_type": "sklearn",
        "source": json.dumps({"uri": "sklearn:digits"}),
        "schema": json.dumps({"columns": []}),
        "profile": json.dumps({"rows": {"train": 10}}),
    },
}


@pytest.fixture
def run(mlflow_store, tmp_path):
    """Make a run folder as `shoal.workflows.train` leaves one."""

    def make(name="run", status="FINISHED", **identity):
        folder = RunFolder(str(tmp_path / name))
        folder.create_identity(
            name=name,
            experiment=f"experiment {tmp_path.name}",
            tracking_uri=mlflow_store,
            artifact_location=(
                (tmp_path / "artifacts").as_uri() if mlflow_store.startswith("sqlite") else None
            ),
        )
        folder.update(Identity, status=status, **identity)
        folder.write(CONFIG, b"seed: 0\n")
        folder.save(Metadata.model_validate(METADATA_OF_A_RUN))
        folder.save(Result(status=status, run_name=name, run_folder=folder.uri))
        folder.write(f"{PICTURES}/loss_curve.png", b"png")
        return folder

    return make


@pytest.fixture
def sweep(run):
    """Make the folder of a sweep with trials, as `shoal.workflows.tune.sweep` leaves one."""

    def make(statuses=("FINISHED", "FINISHED"), status="FINISHED"):
        folder = run("sweep", status, is_sweep=True, end_ms=2_000_000_000_000)
        for number, one in enumerate(statuses):
            add_trial(folder, number, one)
        folder.write(f"{REPORTS}/report.html", b"<html></html>")
        return folder

    return make


@pytest.fixture(scope="session")
def gone_process():
    """A lease, renewed just now, of a process that has ended."""
    code = "from shoal.storage.lease import new_lease; print(new_lease(attempt=1).model_dump_json())"
    return Lease.parse(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
