"""cluster.yaml is valid by Ray's own schema, and keeps to what running it on real hosts has taught."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
STARTS = {name: CLUSTER[f"{name}_start_ray_commands"] for name in ("head", "worker")}


def start_command(name):
    found = [command for command in STARTS[name] if "ray start" in command]
    assert len(found) == 1
    return found[0]


def exports(command):
    return dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", command))


def test_ray_accepts_it():
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(CLUSTER)
    validate_config(filled)
    workers = len(CLUSTER["provider"]["worker_ips"])
    node = filled["available_node_types"][filled["head_node_type"]]
    assert node["min_workers"] == node["max_workers"] == workers >= 1


def test_the_hosts_are_placeholders():
    hosts = [CLUSTER["provider"]["head_ip"], *CLUSTER["provider"]["worker_ips"]]
    assert all(host.endswith(".example") for host in hosts)
    assert len(set(hosts)) == len(hosts)


@pytest.mark.parametrize("name", STARTS)
def test_every_node_authenticates_with_the_token_it_was_given(name):
    given = exports(start_command(name))
    assert given["RAY_AUTH_MODE"] == "token"
    token = given["RAY_AUTH_TOKEN_PATH"].replace("$HOME", "~")
    assert token in CLUSTER["file_mounts"]
    assert token != "~/.ray/auth_token", "there, any ray.init() of the host's own would read or write it"


@pytest.mark.parametrize("name", STARTS)
def test_ray_is_called_in_the_installed_environment(name):
    for command in STARTS[name]:
        assert re.match(r"\. (~|/)\S*/\.venv/bin/activate && ", command), command


def test_nodes_stop_before_they_start():
    for commands in STARTS.values():
        assert commands[0].endswith("ray stop")


def test_all_nodes_share_one_environment():
    assert exports(start_command("head")) == exports(start_command("worker"))
    assert exports(start_command("head"))["SHOAL_HOME"].startswith("/")


def test_workers_join_the_head():
    head, worker = start_command("head"), start_command("worker")
    port = re.search(r"--port=(\d+)", head)
    assert port
    assert f"--address=$RAY_HEAD_IP:{port[1]}" in worker
    assert "--head" in head
    assert "--autoscaling-config=$HOME/ray_bootstrap_config.yaml" in head


def test_what_is_copied_is_there_and_enough_to_install():
    copied = {there: here for there, here in CLUSTER["file_mounts"].items() if there.startswith("~/shoal/")}
    for there, here in copied.items():
        assert (ROOT / here).exists()
        assert there == f"~/shoal/{here}"
    assert {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "platform"} <= set(copied.values())
    assert CLUSTER["setup_commands"] == ["make -C ~/shoal setup"]


def test_no_link_in_what_is_copied_leads_out_of_it():
    """Ray's autoscaler reads all copied files on the head, and starts no worker where a link leads nowhere."""
    copied = [(ROOT / here).resolve() for here in CLUSTER["file_mounts"].values() if not here.startswith("~")]
    links = [path for folder in copied for path in folder.rglob("*") if path.is_symlink()]
    assert links
    for link in links:
        assert any(link.resolve().is_relative_to(folder) for folder in copied), link
