"""What does not answer is not waited for: an MLflow server that is silent, refuses or is slow."""

import signal
import time

import pytest

from faulty_proxy import FaultyProxy, blackholed, denied, slow
from running import Place, Server, eventually, mlflow_record

pytestmark = pytest.mark.long

ALONE = ("train.epochs=3", "run_name=run", "scale.num_workers=0", "data.source=sklearn:digits")


def test_a_server_that_stops_answering_holds_up_neither_the_end_nor_an_interrupt(
    place: Place, server: Server
) -> None:
    with FaultyProxy(server.uri) as proxy:
        process = place.start("train", *ALONE, "train.epochs=100000", f"track.tracking_uri={proxy.uri}")
        place.wait_for_step(process, "run", 10)
        eventually(lambda: place.folder("run").tracked().run_id is not None, 60, "a run in MLflow")
        proxy.fault = blackholed
        place.wait_for_step(process, "run", 100)
        since = time.monotonic()
        process.send_signal(signal.SIGINT)
        stopped = place.wait(process)
        assert time.monotonic() - since < 20, "10 on a quiet machine"
        assert stopped.code == 130, stopped.out + stopped.err
        assert "jobs/sync.py" in stopped.err
        assert place.folder("run").identity().status == "KILLED"


def test_a_server_that_refuses_is_noticed_before_anything_starts(place: Place, server: Server) -> None:
    with FaultyProxy(server.uri, denied) as proxy:
        done = place.run("train", *ALONE, f"track.tracking_uri={proxy.uri}")
    assert done.code == 2, done.out + done.err
    assert "set MLFLOW_TRACKING_USERNAME" in done.errors[0]
    assert not (place.path / "runs").exists()


def test_a_slow_server_is_called_seldom(place: Place, server: Server) -> None:
    settings = ("track.registered_model_name=slow", "if_exists=new")
    with FaultyProxy(server.uri, slow(0.3)) as proxy:
        result = place.train(*ALONE, *settings, f"track.tracking_uri={proxy.uri}")
        calls = proxy.count()
    # 23 of them are the files of the model and of the run. It was 228 when the model's code was uploaded file by file.
    assert sum(calls.values()) - calls["POST /api/2.0/mlflow/runs/log-batch"] < 70, calls
    run, history = mlflow_record(server.uri, result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert history
