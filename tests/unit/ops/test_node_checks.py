"""Each check of a machine finds its fault, one at a time, names the node, and says what to do; a sound one has none."""

from dataclasses import replace

import pytest

from shoal.ops import node_checks
from shoal.ops.node import Disk, NodeReport, report_node
from shoal.ops.node_checks import GIB, MIB, Clock

SOUND = NodeReport(
    host="one",
    versions={
        "python": "3.11.7",
        "ray": "2.60.0",
        "torch": "2.13.0",
        "mlflow": "3.17.2",
        "shoal": "0.1.0 (abc)",
    },
    gloo_address="10.0.0.1",
    interface=None,
    auth_mode="token",
    has_token=True,
    shm_bytes=8 * GIB,
    memory_bytes=16 * GIB,
    disks={"/tmp/ray": Disk(100 * GIB, 400 * GIB)},
    open_files=65536,
    gpus=0,
    has_cuda=False,
    left_behind=None,
)


def checks(reports, object_store=0):
    """All checks of machines, with what Ray says of GPUs as it is."""
    return [
        *node_checks.check_versions(reports),
        *node_checks.check_names(reports),
        *node_checks.check_tokens(reports),
        *node_checks.check_devices(reports, {}),
        *node_checks.check_shared_memory(reports, dict.fromkeys(reports, object_store)),
        *node_checks.check_disks(reports),
        *node_checks.check_open_files(reports),
        *node_checks.check_left_behind(reports),
    ]


FAULTS = {
    "another torch": (
        {"versions": {**SOUND.versions, "torch": "2.12.0"}},
        "versions",
        "fatal",
        "torch 2.12.0, else",
    ),
    "other sources": ({"versions": {**SOUND.versions, "shoal": "0.1.0 (bcd)"}}, "versions", "fatal", "(bcd)"),
    "no mlflow": (
        {"versions": {**SOUND.versions, "mlflow": "not installed"}},
        "versions",
        "fatal",
        "not installed",
    ),
    "loopback": ({"gloo_address": "127.0.1.1"}, "names", "fatal", "127.0.1.1"),
    "loopback of IPv6": ({"gloo_address": "::1"}, "names", "fatal", "::1"),
    "no interface": (
        {"gloo_address": None, "interface": "eth7"},
        "names",
        "fatal",
        "GLOO_SOCKET_IFNAME=eth7",
    ),
    "no token": ({"auth_mode": None}, "tokens", "fatal", "RAY_AUTH_MODE=unset, elsewhere token"),
    "small shm": ({"shm_bytes": 64 * MIB}, "shared memory", "fatal", "64 MiB"),
    "less shm": ({"shm_bytes": GIB}, "shared memory", "warning", "1.0 GiB"),
    "full disk": ({"disks": {"/tmp/ray": Disk(15 * GIB, 400 * GIB)}}, "disk", "fatal", "15.0 GiB free"),
    "little disk": ({"disks": {"/tmp/ray": Disk(5 * GIB, 20 * GIB)}}, "disk", "warning", "5.0 GiB free"),
    "few files": ({"open_files": 256}, "open files", "fatal", "256"),
    "not many files": ({"open_files": 1024}, "open files", "warning", "1024"),
    "torch without CUDA": ({"gpus": 4}, "devices", "fatal", "4 GPUs and torch 2.13.0 without CUDA"),
    "a cluster that is gone": ({"left_behind": "10.0.0.9:6379"}, "cluster file", "warning", "10.0.0.9:6379"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_node_is_found_there_and_nowhere_else(fault):
    changes, check, level, words = FAULTS[fault]
    nodes = {"one": SOUND, "two": replace(SOUND, gloo_address="10.0.0.2"), "three": replace(SOUND, **changes)}
    (finding,) = [finding for finding in checks(nodes) if finding.level != "ok"]
    assert (finding.check, finding.level, finding.where) == (check, level, "three")
    assert words in finding.value
    assert finding.rule
    assert finding.remedy


def test_sound_nodes_have_no_fault():
    found = checks({"one": SOUND, "two": SOUND})
    assert {finding.level for finding in found} == {"ok"}
    assert len({finding.check for finding in found}) == 8


def test_a_machine_by_itself_may_listen_at_loopback():
    assert node_checks.check_names({"one": replace(SOUND, gloo_address="127.0.0.1")})[0].level == "ok"


def test_shared_memory_needs_to_hold_the_object_store_that_ray_has_there():
    small = {"one": replace(SOUND, shm_bytes=GIB)}
    assert node_checks.check_shared_memory(small, {"one": GIB})[0].level == "ok"
    assert node_checks.check_shared_memory(small, {"one": 2 * GIB})[0].level == "warning"


def test_a_token_file_that_no_mode_speaks_of_is_a_warning():
    silent = replace(SOUND, auth_mode=None, has_token=False)
    (finding,) = node_checks.check_tokens({"one": silent, "two": replace(silent, has_token=True)})
    assert (finding.level, finding.where) == ("warning", "two")
    assert node_checks.check_tokens({"one": silent})[0].level == "ok"


@pytest.mark.parametrize(
    ("clock", "level"),
    [
        (Clock(0.5, 0.01), "ok"),
        (Clock(-3.0, 1.5), "ok"),  # within the error
        (Clock(3.0, 0.01), "warning"),
        (Clock(-3600.0, 0.01), "fatal"),
    ],
)
def test_a_clock_counts_as_wrong_by_what_is_beyond_the_error(clock, level):
    (finding,) = node_checks.check_clocks({"one": clock})
    assert (finding.level, finding.where) == (level, "one")
    assert (level == "ok") == (finding.remedy == "")


@pytest.mark.parametrize(("of_ray", "level"), [(2, "ok"), (1, "warning"), (3, "fatal")])
def test_ray_must_have_the_gpus_that_are_there(of_ray, level):
    (finding,) = node_checks.check_devices({"one": replace(SOUND, gpus=2, has_cuda=True)}, {"one": of_ray})
    assert finding.level == level


def test_a_real_machine_says_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    report = report_node([str(tmp_path / "not" / "there")])
    assert report.gloo_address == "127.0.0.1"
    assert set(report.versions) == set(SOUND.versions)
    (disk,) = report.disks.values()
    assert 0 < disk.free < disk.total
    assert report.memory_bytes > GIB
    assert report.open_files > 100
