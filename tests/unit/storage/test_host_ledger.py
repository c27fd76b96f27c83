"""What hosts failed, as files that no two processes write."""

from shoal.storage.host_ledger import HOSTS, WINDOW_MS, HostLedger, failing_hosts
from shoal.storage.records import HostFailure

NOW_MS = 10 * WINDOW_MS


def failure(host, run, ago_ms=0, kind="lost worker"):
    return HostFailure(host=host, run=run, kind=kind, message="gone", at_ms=NOW_MS - ago_ms)


def test_a_run_counts_once_against_a_host(tmp_path):
    ledger = HostLedger(str(tmp_path))
    for ago_ms in (3, 2, 1):
        ledger.charge(failure("w1", "shoal/one", ago_ms))
    [only] = ledger.recent(NOW_MS)["w1"]
    assert only.at_ms == NOW_MS - 1
    assert failing_hosts(ledger.recent(NOW_MS)) == []


def test_a_host_that_failed_three_runs_in_a_week_is_failing_until_it_is_forgiven(tmp_path):
    ledger = HostLedger(str(tmp_path))
    for number in range(4):
        ledger.charge(failure("w1", f"shoal/run{number}", number))
        ledger.charge(failure("w2", f"shoal/run{number}", number, "hang"))
    ledger.charge(failure("w2", "other/run"))
    ledger.charge(failure("w3", "shoal/run0"))
    recent = ledger.recent(NOW_MS)
    assert failing_hosts(recent) == ["w2", "w1"]
    assert [one.run for one in recent["w1"]] == [f"shoal/run{number}" for number in range(4)]
    ledger.forgive("w2")
    assert failing_hosts(ledger.recent(NOW_MS)) == ["w1"]
    assert failing_hosts(ledger.recent(NOW_MS + WINDOW_MS - 2)) == []  # two of its runs are in the window
    assert ledger.recent(NOW_MS + WINDOW_MS) == {}


def test_a_damaged_file_counts_for_nothing(tmp_path):
    ledger = HostLedger(str(tmp_path))
    assert ledger.recent(NOW_MS) == {}
    for number in range(3):
        ledger.charge(failure("w1", f"shoal/run{number}"))
    (tmp_path / HOSTS / "w1" / "shoal.run1.json").write_bytes(b"")
    assert len(ledger.recent(NOW_MS)["w1"]) == 2
