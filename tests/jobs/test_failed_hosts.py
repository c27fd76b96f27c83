"""A host that failed three runs is left out and named, and used where it is needed.

Hosts here differ by their names alone. That the doctor lets one back is in `test_doctor.py`.
"""

import subprocess

import pytest

from ray_nodes import head, node
from running import Place
from shoal.storage.host_ledger import MOST_RUNS, HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import FailureRecord, HostFailure, Outcome

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode != 0,
        reason="unshare --uts is not permitted",
    ),
]

SETTINGS = ("train.max_steps=20", "scale.use_gpu=false")
# A user's model that loses its loss once, on the first host that comes to it.
MODULE = """
import os

from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer, self.passes = nn.Linear(inputs, outputs), 0

    def forward(self, x):
        self.passes += self.training
        if self.training and self.passes == 12:
            try:
                os.mkdir("{once}")
                return self.layer(x) * float("nan")
            except FileExistsError:
                pass
        return self.layer(x)
"""


def host_of(place: Place, run: str) -> str | None:
    outcome = place.folder(run).load(Outcome)
    assert outcome is not None
    return outcome.host


def test_a_failing_host_is_left_out_and_named(place: Place) -> None:
    place.add_module("losing", MODULE.replace("{once}", str(place.path / "once")))
    ledger = HostLedger(str(place.path / "runs"))
    with head() as address, node(address, "first", 1, "w1"), node(address, "second", 1, "w2"):
        place.env |= {"RAY_ADDRESS": address, "GLOO_SOCKET_IFNAME": "lo"}

        # A replay goes to another host, and is counted against the one before.
        lost = place.run("train", "run_name=lost", "model.name=losing:Net", "scale.num_workers=1", *SETTINGS)
        assert lost.code == 0, lost.err
        record = place.folder("lost").load(FailureRecord)
        assert record is not None
        assert record.root is not None
        bad, good = str(record.root.host), host_of(place, "lost")
        assert {bad, good} == {"w1", "w2"}
        assert [one.kind for one in ledger.recent(now_ms())[bad]] == ["bad host"]

        for number in range(1, MOST_RUNS):
            ledger.charge(
                HostFailure(host=bad, run=f"shoal/r{number}", kind="hang", message="", at_ms=now_ms())
            )
        one = place.run("train", "run_name=one", "scale.num_workers=1", *SETTINGS)
        assert one.code == 0, one.err
        assert f"host {bad} failed 3 runs in a week" in one.err
        assert "is left out: `shoal doctor` lets it back" in one.err
        assert host_of(place, "one") == good

        two = place.run("train", "run_name=two", "scale.num_workers=2", *SETTINGS)
        assert two.code == 0, two.err
        assert "is used all the same, since the others lack room for 2 workers" in two.err


@pytest.mark.parametrize(
    ("job", "settings"),
    [("train", ["scale.num_workers=1"]), ("tune", ["optim.lr=0.01,0.1"])],
    ids=["training", "sweep"],
)
def test_a_host_that_is_left_out_is_used_once_the_others_are_gone(
    place: Place, job: str, settings: list[str]
) -> None:
    ledger = HostLedger(str(place.path / "runs"))
    with head() as address, node(address, "first", 1, "w1"), node(address, "second", 1, "w2") as other:
        place.env |= {"RAY_ADDRESS": address, "GLOO_SOCKET_IFNAME": "lo"}
        for number in range(MOST_RUNS):
            ledger.charge(
                HostFailure(host="w1", run=f"shoal/r{number}", kind="hang", message="", at_ms=now_ms())
            )
        process = place.start(job, "run_name=run", *settings, *SETTINGS)
        assert process.stderr is not None
        while "is left out" not in (line := process.stderr.readline()):
            assert line, "it ended"
        other.kill()
        done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert "waiting for 1 CPU (0 of 1 there)" in done.err
    if job == "train":
        assert host_of(place, "run") == "w1"
