"""Which host is bad follows from which pairs failed; two ends measure each other."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.ops.network_probe import (
    PairSpeed,
    check_network,
    first_round,
    free_port,
    measure_pair,
    second_round,
)

FINE, FAILED = PairSpeed(0.5, 1e9), PairSpeed(error="connection refused")


def diagnosed(nodes, bad=(), slow=(), walls=()):
    """Go through both rounds of nodes of which some are bad, slow, or separated by a wall."""

    def speed_of(pair):
        if set(pair) & set(bad) or set(pair) in [set(wall) for wall in walls]:
            return FAILED
        return PairSpeed(0.5, 1e8) if set(pair) & set(slow) else FINE

    speeds = {pair: speed_of(pair) for pair in first_round(nodes)}
    later = second_round(nodes, speeds)
    assert len({node for pair in later for node in pair}) == 2 * len(later), "a node is in one pair at a time"
    return check_network({**speeds, **{pair: speed_of(pair) for pair in later}})


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_sound_nodes_are_all_measured_and_found_sound(count):
    nodes = [f"n{number}" for number in range(count)]
    (finding,) = diagnosed(nodes)
    assert finding.level == "ok"
    pairs = first_round(nodes) + second_round(nodes, dict.fromkeys(first_round(nodes), FINE))
    assert {node for pair in pairs for node in pair} == set(nodes)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 9])
def test_one_bad_host_is_named_wherever_it_is(count):
    nodes = [f"n{number}" for number in range(count)]
    for bad in nodes:
        (finding,) = diagnosed(nodes, bad=[bad])
        assert (finding.level, finding.where) == ("fatal", bad)
        assert "connection refused" in finding.value


def test_two_bad_hosts_in_one_pair_are_both_named():
    found = diagnosed(["a", "b", "c", "d"], bad=["a", "b"])
    assert {finding.where for finding in found} == {"a", "b"}


def test_of_two_hosts_neither_can_be_cleared():
    (finding,) = diagnosed(["a", "b"], bad=["b"])
    assert finding.where == "a - b"


def test_two_sound_hosts_that_do_not_reach_each_other_are_named_together():
    (finding,) = diagnosed(["a", "b", "c", "d"], walls=[("a", "b")])
    assert finding.where == "a - b"


@pytest.mark.parametrize("slow", ["a", "d"])
def test_a_slow_host_is_named(slow):
    (finding,) = diagnosed(["a", "b", "c", "d", "e", "f"], slow=[slow])
    assert (finding.level, finding.where) == ("warning", slow)


def test_one_node_has_no_pairs():
    assert check_network({})[0].level == "ok"


def test_two_ends_measure_each_other():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(measure_pair, rank, "127.0.0.1", port) for rank in (0, 1)]
        speeds = [one.result() for one in running]
    for speed in speeds:
        assert speed.error is None
        assert 0 < speed.latency_ms < 1000
        assert speed.bytes_per_second > 1e6


def test_a_partner_that_does_not_come_is_an_error_within_the_limit():
    speed = measure_pair(1, "127.0.0.1", free_port(), patience_s=1.0)
    assert speed.error
