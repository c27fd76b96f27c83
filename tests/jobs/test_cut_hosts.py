"""A host that all workers are on is cut off silently: nobody is left who would notice, but the driver."""

import time
from pathlib import Path

import pytest

from host_training import OTHERS, HostTraining, three_hosts
from running import Trace, assert_equal, last_step, slow_run, twin_place
from shoal.storage.records import FailureRecord

pytestmark = pytest.mark.long

SETTINGS = slow_run(3000)


def test_a_training_goes_on_elsewhere_before_ray_gives_up_the_host_that_is_cut_off(tmp_path: Path) -> None:
    """Ray waits for a node for more than a minute. The processes there go on, and change nothing of the records."""
    with three_hosts() as hosts:
        training = HostTraining(hosts, tmp_path / "log", (*SETTINGS, "scale.num_workers=1"))
        training.await_step(250)
        [cut] = [name for name in OTHERS if hosts.processes(name, "RayTrainWorker")]
        late = hosts.processes(cut, "RayTrainWorker")
        cut_s = time.monotonic()
        hosts.set_link(cut, "down")
        [spare] = set(OTHERS) - {cut}
        training.await_worker(spare)
        found_s = time.monotonic() - cut_s
        assert [one for one in late if one.is_running()]
        training.await_step(last_step(training.folder) + 200)
        hosts.set_link(cut, "up")
        training.wait()
        print(f"a worker elsewhere {found_s:.1f} s after the cut")
        assert found_s < 50  # 25 s on a machine of its own
        failure = training.folder.load(FailureRecord)
        assert failure is not None
        assert failure.failures == 1
        assert f"worker 0 on {cut} has been in" in failure.message
        twin = twin_place(tmp_path)
        assert twin.run("train", *SETTINGS, "scale.num_workers=1").code == 0
        assert_equal(Trace.of(training.folder), Trace.of(twin.folder("run")))
