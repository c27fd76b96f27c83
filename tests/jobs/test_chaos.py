"""Whatever is killed, the run ends up like its uninterrupted twin: weights bit for bit, each step recorded once."""

import re
import signal
from pathlib import Path

import psutil
import pytest

from running import (
    Place,
    Server,
    Trace,
    assert_equal,
    eventually,
    mlflow_record,
    still_runs,
    train_workers,
)

pytestmark = pytest.mark.long

# Some seconds of training in 3 000 steps, so that a kill at a given step hits it; dropout, so that random states count.
SETTINGS = (
    "train.epochs=131",
    "run_name=run",
    "model.args={dropout: 0.1}",
    "checkpoint.every_steps=150",
    "train.evaluate_every_steps=200",
)

# Without Ray, where what is killed is not a part of it.
ALONE = ("train.epochs=60", "run_name=run", "model.args={dropout: 0.1}", "scale.num_workers=0")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]) -> Trace:
    place = Place(tmp_path_factory.mktemp("twin"), {"RAY_ADDRESS": cluster["address"]})
    place.train(*SETTINGS)
    return Trace.of(place.folder("run"))


def assert_like_twin(place: Place, twin: Trace) -> None:
    folder = place.folder("run")
    assert_equal(Trace.of(folder), twin)
    run, history = mlflow_record(f"sqlite:///{place.path}/mlflow.db", folder.tracked().run_id)
    assert run.info.status == "FINISHED"
    assert history == twin.points


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumed_by_the_same_command(
    place: Place, twin: Trace
) -> None:
    """Both in one run; its watchdog closes it in between."""
    process = place.start("train", *SETTINGS)
    place.wait_for_step(process, "run", 700)
    train_workers(process)[1].kill()
    place.wait_for_step(process, "run", 1700)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    out, err = process.communicate()
    assert re.search(
        r"lost worker: worker [01] on \S+ was lost .*; resuming from the checkpoint of step \d+", err
    )
    assert "(raylet)" not in out + err
    folder = place.folder("run")

    def is_closed() -> bool:
        return folder.identity().status == "FAILED"

    eventually(is_closed, 30, "the watchdog closes the run")
    # Ray's two idle agents end by themselves a minute after their raylet.
    mine = [child for child in below if not still_runs(child, "Agent")]
    eventually(lambda: not any(map(still_runs, mine)), 40, "workers, raylet and watchdog end")
    done = place.run("train", *SETTINGS)
    assert done.code == 0, done.out + done.err
    assert_like_twin(place, twin)


def test_an_interrupt_leaves_a_checkpoint_and_a_killed_run(place: Place) -> None:
    """SIGINT; SIGTERM takes the same way and is what `ray job stop` sends (test_submit.py).

    That a run stopped at any step goes on bit for bit is proved without Ray (test_train_loop.py).
    """
    process = place.start("train", *SETTINGS)
    place.wait_for_step(process, "run", 1000)
    eventually(lambda: place.folder("run").tracked().run_id is not None, 60, "a run in MLflow")
    process.send_signal(signal.SIGINT)
    done = place.wait(process)
    assert done.code == 130, done.out + done.err
    assert done.errors == [], "what was asked for is no error"
    assert re.search(r"interrupted at step \d+, after a checkpoint; the same command resumes", done.err)
    assert done.seconds < 90  # 30 on a quiet machine
    folder = place.folder("run")
    run, _ = mlflow_record(f"sqlite:///{place.path}/mlflow.db", folder.tracked().run_id)
    assert run.info.status == "KILLED"
    assert folder.names("checkpoints")


def assert_delivered(place: Place, tracking_uri: str) -> None:
    """MLflow has what the run's folder has."""
    folder = place.folder("run")
    run, history = mlflow_record(tracking_uri, folder.tracked().run_id)
    assert run.info.status == "FINISHED"
    assert history == Trace.of(folder).points


def test_killed_tracking_server_costs_nothing(place: Place, server: Server) -> None:
    process = place.start("train", *ALONE, "train.epochs=300", f"track.tracking_uri={server.uri}")
    place.wait_for_step(process, "run", 300)
    eventually(lambda: place.folder("run").tracked().run_id is not None, 60, "a run in MLflow")
    server.kill()
    place.wait_for_step(process, "run", 2500)
    # A server may need longer to start than a run that is over waits for it.
    process.send_signal(signal.SIGSTOP)
    server.start()
    process.send_signal(signal.SIGCONT)
    done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert_delivered(place, server.uri)


def test_no_tracking_server_at_all_and_a_sync_afterwards(place: Place, tmp_path: Path) -> None:
    late = Server(tmp_path)
    done = place.run("train", *ALONE, f"track.tracking_uri={late.uri}")
    assert done.code == 0, done.out + done.err
    assert "does not answer" in done.err
    assert "jobs/sync.py" in done.err
    folder = str(place.path / "runs" / "shoal" / "run")
    late.start()
    try:
        for _ in range(2):
            synced = place.run("sync", folder)
            assert synced.code == 0, synced.err
            assert_delivered(place, late.uri)
        from mlflow import MlflowClient

        client = MlflowClient(late.uri, late.uri)
        experiment = client.get_experiment_by_name("shoal")
        assert len(client.search_runs([experiment.experiment_id])) == 1
        assert len(client.search_logged_models([experiment.experiment_id])) == 1
    finally:
        late.kill()
