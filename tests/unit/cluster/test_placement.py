"""Which hosts are left out of a placement: never so many that the workers have no room."""

import pytest

from shoal.cluster import placement, session
from shoal.cluster.node_selector import leaving_out
from shoal.cluster.placement import FreeNode, Placement, leave_out
from shoal.storage.host_ledger import HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import HostFailure

TOTAL = {"CPU": 4.0}
NODES = [
    FreeNode("a1", "a", TOTAL, {"CPU": 2.0}),
    FreeNode("b1", "b", TOTAL, {"CPU": 1.0}),
    FreeNode("b2", "b", TOTAL, {"CPU": 1.0}),
    FreeNode("c1", "c", TOTAL, {}),
]


@pytest.mark.parametrize(
    ("workers", "hosts", "left"),
    [
        (2, [], []),
        (2, ["a"], ["a"]),
        (2, ["b"], ["b"]),
        (2, ["a", "b"], ["a"]),  # the worst of them, then none is left for the workers
        (2, ["b", "a"], ["b"]),
        (3, ["a", "b"], []),
        (3, ["a", "c"], ["c"]),
        (4, ["c"], ["c"]),
        (5, ["c"], []),
    ],
)
def test_hosts_are_left_out_while_the_others_have_room(workers, hosts, left):
    assert leave_out(NODES, {"CPU": 1.0, "GPU": 0}, workers, hosts) == left


def test_the_only_host_is_never_left_out():
    assert leave_out(NODES[:1], {"CPU": 1.0}, 1, ["a"]) == []


@pytest.mark.parametrize(
    ("workers", "selector"),
    [
        (1, leaving_out(["b1"])),
        (2, leaving_out(["b1"])),
        (3, None),  # the others have no room
    ],
)
def test_a_host_that_takes_no_connections_is_left_out_where_the_others_have_room(
    workers, selector, monkeypatch, tmp_path
):
    """Ray believes it alive, and with room."""
    nodes = [
        FreeNode("a1", "a", {"CPU": 2.0}, {"CPU": 2.0}),
        FreeNode("b1", "b", TOTAL, TOTAL, answers=False),
    ]
    monkeypatch.setattr(session, "answers", lambda: True)
    monkeypatch.setattr(placement, "live_nodes", lambda: nodes)
    assert Placement(f"{tmp_path}/shoal/run").selector({"CPU": 1.0}, workers) == selector


def test_of_hosts_that_failed_runs_half_at_most_are_left_out(monkeypatch, tmp_path, caplog):
    """Where most hosts fail, it is not the hosts; and a sweep would train on the few that are left."""
    nodes = [FreeNode(f"{host}1", host, TOTAL, TOTAL) for host in "abc"]
    nodes.append(FreeNode("h1", "head", {"CPU": 0.0}, {"CPU": 0.0}))  # which trains nothing
    monkeypatch.setattr(session, "answers", lambda: True)
    monkeypatch.setattr(placement, "live_nodes", lambda: nodes)
    ledger = HostLedger(str(tmp_path))
    for host, failed in (("a", 3), ("b", 4)):
        for number in range(failed):
            failure = HostFailure(host=host, run=f"shoal/r{number}", kind="hang", message="", at_ms=now_ms())
            ledger.charge(failure)
    assert Placement(f"{tmp_path}/shoal/run").selector({"CPU": 1.0}, 1) == leaving_out(["b1"])
    said = {record.args[0]: record.getMessage() for record in caplog.records}
    assert "host b failed 4 runs in a week" in said["b"]
    assert "and is left out" in said["b"]
    assert "and is used all the same, since half of the hosts at most are left out" in said["a"]
