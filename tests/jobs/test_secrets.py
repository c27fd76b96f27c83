"""A distinct secret in each place that takes one: jobs work with it, and leave it nowhere."""

import itertools
import logging
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
from pyarrow import fs

from running import Finished, Place, Server

pytestmark = pytest.mark.long

SECRETS = {
    "tracking": "planted-in-tracking",
    "storage": "planted-in-storage",
    "source": "planted-in-source",
    "query": "planted-in-query",
    "MLFLOW_TRACKING_TOKEN": "planted-in-mlflow-token",
    "AWS_SECRET_ACCESS_KEY": "planted-in-aws-secret",
    "HF_TOKEN": "planted-in-hf-token",
    "WANDB_API_KEY": "planted-in-api-key",
}
TOKENS = {name: value for name, value in SECRETS.items() if name.isupper()}
MODULE = f"""
import numpy as np

def read(api_key, rows):
    assert api_key == "{SECRETS["query"]}", api_key
    draw = np.random.default_rng(0)
    features = draw.normal(size=(rows, 4))
    return {{"a": features[:, 0], "b": features[:, 1], "target": (features.sum(axis=1) > 0).astype(int)}}
"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server in this process, with a bucket that holds `rows.csv`; yields its address."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        urlopen(Request(f"{address}/bucket", method="PUT"))
        draw = np.random.default_rng(0).normal(size=(1200, 2))
        frame = pd.DataFrame({"a": draw[:, 0], "b": draw[:, 1], "target": (draw.sum(axis=1) > 0).astype(int)})
        with _bucket(address).open_output_stream("bucket/rows.csv") as stream:
            stream.write(frame.to_csv(index=False).encode())
        yield address
    finally:
        server.stop()


@pytest.fixture
def planted(tmp_path: Path, s3: str) -> Iterator[Place]:
    """A working directory, with secrets in the environment of its jobs and a folder of its own for Ray."""
    ray = tempfile.mkdtemp(prefix="shoal-", dir="/tmp")  # short, since sockets lie in it
    aws = {"AWS_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key"}
    (tmp_path / "rows.py").write_text(MODULE)
    try:
        yield Place(tmp_path, {**TOKENS, **aws, "RAY_TMPDIR": ray})
    finally:
        shutil.rmtree(ray, ignore_errors=True)


def leaks(place: Place, s3: str, *jobs: Finished) -> list[str]:
    """Say where a secret is: in the output of jobs, the files and databases below a place, Ray's files, the bucket."""
    found = []
    texts = itertools.chain(
        (("stdout", job.out.encode()) for job in jobs),
        (("stderr", job.err.encode()) for job in jobs),
        _files(place.path),
        _files(Path(place.env["RAY_TMPDIR"])),
        _objects(s3),
    )
    seen = 0
    for name, data in texts:
        seen += 1
        found += [f"{secret} in {name}" for secret, value in SECRETS.items() if value.encode() in data]
    assert seen > 50, "the files of a run were looked at"
    return found


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(root.rglob("*")):
        is_users = path.name == "rows.py" or path.match("__pycache__/rows.*.pyc")
        if is_users or not path.is_file() or path.is_symlink():
            continue
        yield str(path.relative_to(root)), path.read_bytes()
        if path.suffix == ".parquet":  # compressed
            yield str(path.relative_to(root)), pd.read_parquet(path).to_csv().encode()
        if path.suffix == ".db":
            with sqlite3.connect(path) as database:
                yield str(path.relative_to(root)), "\n".join(database.iterdump()).encode()


def _bucket(s3: str) -> fs.S3FileSystem:
    scheme, _, server = s3.partition("://")
    return fs.S3FileSystem(access_key="k", secret_key="s", scheme=scheme, endpoint_override=server)


def _objects(s3: str) -> Iterator[tuple[str, bytes]]:
    bucket = _bucket(s3)
    for info in bucket.get_file_info(fs.FileSelector("bucket", recursive=True)):
        if info.is_file:
            yield info.path, bytes(bucket.open_input_stream(info.path, compression=None).read())


def test_training_works_with_secrets_and_leaves_none(planted: Place, s3: str, server: Server) -> None:
    """With them in the tracking URI and the data source; the interrupted run is resumed with another password."""
    tracking = server.uri.replace("://", f"://me:{SECRETS['tracking']}@")
    common = ("run_name=run", f"track.tracking_uri={tracking}", "data.label=target", "train.epochs=20")
    first = planted.start("train", *common, f"data.source=csv:s3://me:{SECRETS['source']}@bucket/rows.csv")
    planted.wait_for_step(first, "run", 3)
    first.send_signal(signal.SIGTERM)
    stopped = planted.wait(first)
    assert stopped.code == 130, stopped.out + stopped.err
    done = planted.run("train", *common, "data.source=csv:s3://me:changed-password@bucket/rows.csv")
    assert done.code == 0, done.out + done.err
    assert done.result["attempt"] == 2
    assert done.result["is_verified"]
    assert done.result["tracking_uri"] == server.uri
    assert done.result["mlflow_run_id"]
    assert "warning" not in done.err
    folder = done.result["run_folder"]
    judged = planted.run("evaluate", folder, f"track.tracking_uri={tracking}")
    assert judged.code == 0, judged.out + judged.err  # with the keys of the environment
    without = planted.run("evaluate", folder, AWS_ACCESS_KEY_ID="")
    assert without.code == 2
    assert "secrets are not stored" in without.errors[0]
    assert "AWS_ACCESS_KEY_ID" in without.errors[0]
    assert leaks(planted, s3, stopped, done, judged, without) == []


def test_a_sweep_works_with_secrets_and_leaves_none(planted: Place, s3: str) -> None:
    """With them in the storage path and the query of the data source."""
    source = f"rows:read?api_key={SECRETS['query']}&rows=300"
    arguments = ("data.source=" + source, "optim.lr=0.01,0.1", "train.epochs=2", "run_name=sweep")
    done = planted.run("tune", *arguments, f"storage_path=s3://me:{SECRETS['storage']}@bucket/runs")
    assert done.code == 0, done.out + done.err
    assert "run_folder" not in done.err
    assert "result: s3://***@bucket/runs/shoal/sweep/result.json" in done.out
    assert leaks(planted, s3, done) == []


def test_a_secret_in_an_error_is_masked(planted: Place, s3: str) -> None:
    secret = SECRETS["source"]
    for setting in (
        f"data.source=csv:s3://me:{secret}@bucket/none.csv",
        f"data.source=csv://me:{secret}@bucket/none.csv",
        f"storage_path=s3://me:{secret}@bucket/x?region=us",
        f"optim.lr=http://me:{secret}@host",
    ):
        done = planted.run("train", setting, SHOAL_TRACEBACK="1")
        assert done.code == 2, done.out + done.err
        assert len(done.errors) == 1
        assert "***" in done.errors[0]
        assert secret not in done.out + done.err
