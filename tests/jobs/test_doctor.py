"""The doctor on real nodes: a sound cluster passes, and hosts with a fault are named."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Hosts
from running import ROOT, Finished, Place
from shoal.storage.host_ledger import MOST_RUNS, HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import HostFailure

pytestmark = pytest.mark.long


def found(done: Finished, check: str) -> dict[str, dict[str, str]]:
    """Return the findings of a check, by where."""
    return {one["where"]: one for one in done.result["findings"] if one["check"] == check}


def test_a_sound_cluster_passes(place: Place, cluster: dict[str, str]) -> None:
    done = place.run("doctor", "scale.num_workers=2", RAY_ADDRESS=cluster["address"])
    assert done.code == 0, done.out + done.err
    result = done.result
    assert result["status"] == "FINISHED"
    assert len(result["nodes"]) == 1
    assert not [one for one in result["findings"] if one["level"] == "fatal"]
    assert {one["check"] for one in result["findings"]} >= {
        "workers",
        "versions",
        "storage",
        "tracking",
        "clocks",
    }
    assert sorted(path.name for path in (place.path / "runs").iterdir()) == ["doctor"]


def test_what_is_wrong_is_named_with_a_remedy(place: Place, cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = (
        "scale.num_workers=64",
        f"storage_path={tmp_path}/file/runs",
        "track.tracking_uri=http://127.0.0.1:9",
    )
    done = place.run("doctor", *settings, RAY_ADDRESS=cluster["address"])
    assert done.code == 1, done.out + done.err
    assert len(done.errors) == 1
    for check, words in (
        ("workers", "needs 64 CPUs"),
        ("storage", "cannot be written"),
        ("tracking", "refused"),
    ):
        (finding,) = found(done, check).values()
        assert finding["level"] == "fatal"
        assert words in finding["value"], finding
        assert finding["rule"]
        assert finding["remedy"]
        assert f"fatal: {check}" in done.out


def test_a_cluster_that_does_not_answer_is_a_finding(place: Place) -> None:
    done = place.run("doctor", RAY_ADDRESS="127.0.0.1:9")
    assert done.code == 1, done.out + done.err
    assert found(done, "cluster")["driver"]["level"] == "fatal"
    assert found(done, "tracking")


HEAD, LOOPBACK, PRIVATE = "alpha", "beta", "gamma"


# Above 127, so that gloo lets these hosts connect to the one that names itself loopback, and not the other way round.
@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := Hosts.reason():
        pytest.skip(reason)
    with Hosts(tmp_path / "hosts") as hosts:
        hosts.on(HEAD, "192.168.91.1")
        hosts.on(LOOPBACK, "192.168.91.2", hosts=f"127.0.1.1 {LOOPBACK}")
        hosts.on(PRIVATE, "192.168.91.3")
        yield hosts


def test_a_host_that_names_itself_loopback_and_one_with_storage_of_its_own_are_named(
    hosts: Hosts, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    hosts.run(PRIVATE, "mount", "-t", "tmpfs", "own", str(tmp_path / "shared"))
    for name in hosts.addresses:
        hosts.start_ray(name, HEAD)
    settings = ["scale.num_workers=3", f"storage_path={tmp_path}/shared"]
    settings.append(f"track.tracking_uri=sqlite:///{tmp_path}/mlflow.db")
    ledger = HostLedger(f"{tmp_path}/shared")
    for host in (HEAD, LOOPBACK):
        for number in range(MOST_RUNS):
            ledger.charge(
                HostFailure(host=host, run=f"shoal/r{number}", kind="hang", message="", at_ms=now_ms())
            )
    command = [sys.executable, str(ROOT / "jobs" / "doctor.py"), *settings]
    ended = hosts.run(HEAD, *command, check=False, RAY_ADDRESS=f"{hosts.addresses[HEAD]}:6379")
    done = Finished(ended.returncode, ended.stdout, ended.stderr, 0.0)
    assert done.code == 1, done.out + done.err
    assert done.result["nodes"] == [HEAD, LOOPBACK, PRIVATE]
    names = found(done, "names")
    assert {name: one["level"] for name, one in names.items()} == {
        HEAD: "ok",
        LOOPBACK: "fatal",
        PRIVATE: "ok",
    }
    assert "/etc/hosts" in names[LOOPBACK]["remedy"]
    assert found(done, "all-reduce")[LOOPBACK]["level"] == "fatal"
    assert set(found(done, "all-reduce")) == {LOOPBACK}
    (blind,) = found(done, "storage").values()
    assert blind["where"] == PRIVATE
    assert blind["level"] == "fatal"
    assert f"what {HEAD}, {LOOPBACK} wrote" in blind["value"]
    failed = found(done, "failed hosts")
    assert {name: one["level"] for name, one in failed.items()} == {HEAD: "ok", LOOPBACK: "warning"}
    assert set(ledger.recent(now_ms())) == {LOOPBACK}  # the other one is let back
