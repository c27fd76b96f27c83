"""Storage that is not one folder for all nodes, or cannot be written, is found; nothing is left in it."""

import pytest

from shoal.ops.storage_probe import Seen, Written, check_storage, read_probes, remove_probes, write_probe

FINE = Written(0.01)


def probed(storages):
    """Write and read as nodes with these storage paths."""
    written = {node: write_probe(path, "probe", node) for node, path in storages.items()}
    seen = {node: read_probes(path, "probe", list(written)) for node, path in storages.items()}
    for node, path in storages.items():
        remove_probes(path, "probe", written[node].made)
    return check_storage("runs", written, seen)


def test_a_shared_folder_is_sound_and_left_as_it_was(tmp_path):
    new = str(tmp_path / "new" / "runs")
    (finding,) = probed({"a": new, "b": new, "c": new})
    assert finding.level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_keeps_them(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    probed({"a": str(tmp_path / "runs")})
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize("apart", ["a", "c"])
def test_a_node_with_a_folder_of_its_own_is_named(tmp_path, apart):
    storages = dict.fromkeys("abcd", str(tmp_path / "shared"))
    (finding,) = probed({**storages, apart: str(tmp_path / "own")})
    assert (finding.level, finding.where) == ("fatal", apart)
    others = ", ".join(node for node in "abcd" if node != apart)
    assert f"what {others} wrote" in finding.value
    assert "NFS" in finding.remedy or "network folder" in finding.remedy


def test_a_node_that_cannot_write_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    found = probed({"a": str(tmp_path / "shared"), "b": str(tmp_path / "file" / "runs")})
    assert {finding.where for finding in found} == {"b"}
    assert "Not a directory" in found[0].value


def test_an_object_store_that_refuses_is_an_error_and_not_a_wait(monkeypatch):
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "k",
        "SECRET_ACCESS_KEY": "s",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    written = write_probe("s3://doctor-test/runs", "probe", "a")
    assert written.error
    assert written.seconds < 30


def test_slow_storage_is_a_warning_with_the_slowest_node():
    (finding,) = check_storage(
        "runs", {"a": FINE, "b": Written(9.0)}, {"a": Seen([], 0.1), "b": Seen([], 0.1)}
    )
    assert (finding.level, finding.where) == ("warning", "b")
