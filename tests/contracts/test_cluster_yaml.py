"""cluster.yaml and those of clouds are valid by Ray's own schema; clouds run what has been run on real hosts."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
CLOUDS = {name: yaml.safe_load((ROOT / "deploy" / f"{name}.yaml").read_text()) for name in ("aws", "gcp")}
# What Ray's schema leaves open: the machines of Google's API, whose names are known here only as far as they are used.
MACHINE_KEYS = {"machineType", "disks", "scheduling", "serviceAccounts"}
STARTS = {name: CLUSTER[f"{name}_start_ray_commands"] for name in ("head", "worker")}


def start_command(name):
    found = [command for command in STARTS[name] if "ray start" in command]
    assert len(found) == 1
    return found[0]


def exports(command):
    return dict(re.findall(r"\b([A-Z][A-Z_]+)=(\S+)", command))


def test_ray_accepts_it():
    filled = accepted(CLUSTER)
    workers = len(CLUSTER["provider"]["worker_ips"])
    node = filled["available_node_types"][filled["head_node_type"]]
    assert node["min_workers"] == node["max_workers"] == workers >= 1


def accepted(config):
    """Return a config with Ray's defaults filled in; it must be valid before and after."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts_a_cluster_of_a_cloud(cloud):
    config = accepted(CLOUDS[cloud])
    assert config["provider"]["type"] == cloud
    assert config["head_node_type"] == "head"
    worker = config["available_node_types"]["worker"]
    assert worker["min_workers"] == worker["max_workers"] == config["max_workers"], (
        "a job waits for no upscaling"
    )
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}, "only drivers are lost with it"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_typo_in_a_cluster_of_a_cloud_is_found(cloud):
    from ray.autoscaler._private.util import validate_config

    for key in CLOUDS[cloud]:
        planted = copy.deepcopy(CLOUDS[cloud]) | {f"{key}s": CLOUDS[cloud][key]}
        with pytest.raises(ValidationError, match="Additional properties are not allowed"):
            validate_config(planted)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_run_what_hosts_run(cloud):
    config = CLOUDS[cloud]
    for key in ("file_mounts", "rsync_exclude", "head_start_ray_commands", "worker_start_ray_commands"):
        assert config[key] == CLUSTER[key], key
    assert config["setup_commands"][-1:] == CLUSTER["setup_commands"]


def machine_problems(cloud, machine):
    """Return what a cloud's own API says of the parameters of a machine; of Google's, which keys are not known."""
    if cloud == "gcp":
        return [key for key in machine if key not in MACHINE_KEYS]
    import botocore.loaders
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    api = ServiceModel(botocore.loaders.Loader().load_service_model("ec2", "service-2"))
    counts = {"MinCount": 1, "MaxCount": 1}
    shape = api.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(machine | counts, shape).generate_report()
    unknown = [key for key in machine if key not in shape.members]
    return [*unknown, *report.splitlines()]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_head_stays_and_workers_may_be_taken_away(cloud):
    machines = {name: one["node_config"] for name, one in CLOUDS[cloud]["available_node_types"].items()}
    for machine in machines.values():
        assert machine_problems(cloud, machine) == []
        assert machine_problems(cloud, {f"{key}s": value for key, value in machine.items()})
    spot = {
        "aws": ("InstanceMarketOptions", {"MarketType": "spot"}),
        "gcp": ("scheduling", [{"preemptible": True}]),
    }
    key, value = spot[cloud]
    assert machines["worker"][key] == value
    assert key not in machines["head"]


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
