"""Two drivers on one run folder: one trains, the other says who does; one that was taken for dead writes no more."""

import json
import re
import signal
import uuid
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from running import Place, eventually
from shoal.storage.records import Lease
from shoal.storage.run_folder import RunFolder

SETTINGS = ("run_name=run", "scale.num_workers=0", "model.width=16")


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty `storage_path`, on a disk and on a real S3 server."""
    if request.param == "local":
        yield str(place.path / "runs")
        return
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    env["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    place.env.update(env)
    urlopen(Request(f"{env['AWS_ENDPOINT_URL']}/bucket", method="PUT"))
    yield f"s3://bucket/{uuid.uuid4().hex}"
    server.stop()


@pytest.mark.long
def test_of_two_drivers_at_once_one_trains_and_the_other_says_who(place: Place, storage: str) -> None:
    """Whichever is faster; the unit tests repeat the decision a hundred times."""
    command = ("train", *SETTINGS, "train.epochs=100000", f"storage_path={storage}")
    drivers = [place.start(*command), place.start(*command)]
    eventually(lambda: any(driver.poll() is not None for driver in drivers), 120, "one of them ends")
    loser, winner = sorted(drivers, key=lambda driver: driver.poll() is None)
    folder = RunFolder(f"{storage}/shoal/run")
    eventually(lambda: bool(folder.names("checkpoints")), 60, "the other one trains")
    winner.send_signal(signal.SIGINT)
    lost, won = place.wait(loser), place.wait(winner)
    assert (lost.code, won.code) == (2, 130), lost.err + won.err
    assert len(lost.errors) == 1
    assert re.search(rf"process {winner.pid} on \S+, since \d{{4}}-", lost.errors[0]), lost.err
    assert "Traceback" not in lost.err
    assert folder.names("attempts") == ["0001"]
    assert folder.identity().status == "KILLED"


@pytest.mark.long
def test_a_driver_that_was_taken_for_dead_wakes_up_and_writes_no_more(place: Place) -> None:
    """It is stopped, and its lease made that of another host, where nothing can be looked up."""
    command = ("train", *SETTINGS, "train.epochs=2000", "checkpoint.every_steps=50")
    first = place.start(*command)
    place.wait_for_step(first, "run", 100)
    first.send_signal(signal.SIGSTOP)
    folder = place.folder("run")
    mine = folder.lease()
    assert mine is not None
    folder.save(mine.replace(host="elsewhere pid:[1]"), inside="attempts/0001")
    second = place.start(*command)
    eventually(lambda: folder.exists(f"attempts/0002/{Lease.file}"), 120, "the second one takes over")
    folder.save(mine, inside="attempts/0001")
    first.send_signal(signal.SIGCONT)
    done = place.wait(first)
    assert done.code == 2, done.out + done.err
    assert len(done.errors) == 1, done.err
    assert f"taken over by attempt 2 of process {second.pid} on" in done.errors[0]
    assert "Traceback" not in done.err
    second.send_signal(signal.SIGINT)
    ended = place.wait(second)
    assert ended.code == 130, ended.err
    assert "waiting 60 s for a sign of life" in ended.err
    assert json.loads(folder.read("result.json"))["attempt"] == 2
    assert folder.identity().status == "KILLED"
