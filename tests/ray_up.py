"""A cluster that `ray up cluster.yaml` makes over the sshd of such hosts, used from another one as its users do."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hosts import SHARED, SSH_TOOLS, Hosts, missing
from running import ROOT, eventually

HEAD, DESK = "head", "desk"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# The hosts reach no package index. Their environment has the packages of this one, and the shoal that was copied there.
ENVIRONMENT = f"""{sys.executable} -m venv --without-pip ~/shoal/.venv &&
printf '%s\\n' ~/shoal/platform {sysconfig.get_path("purelib")} > $(echo ~/shoal/.venv/lib/*/site-packages)/these.pth &&
printf '#!/bin/sh\\nexec python -m ray.scripts.scripts "$@"\\n' > ~/shoal/.venv/bin/ray &&
chmod +x ~/shoal/.venv/bin/ray"""
# What is left in a cluster when no job runs.
STATE = """
import json, logging, ray
from ray.util import state
ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
actors = [a.class_name for a in state.list_actors(limit=1000) if a.state != "DEAD"]
groups = [g.placement_group_id for g in state.list_placement_groups(limit=1000) if g.state != "REMOVED"]
nodes = [n.node_ip for n in state.list_nodes(limit=1000) if n.state == "ALIVE"]
free = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
print(json.dumps({"actors": actors, "groups": groups, "nodes": nodes, "free": free}))
"""


@dataclass
class UpCluster:
    """`ray up` of the repository's cluster.yaml, with the addresses of hosts that are on and serve SSH.

    Args:
        env: variables of every job, beside those in cluster.yaml.
    """

    hosts: Hosts
    workers: list[str]
    env: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return [HEAD, *self.workers]

    @property
    def config(self) -> Path:
        return self.hosts.home(DESK) / "cluster.yaml"

    @property
    def _auth(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token"}

    def up(self) -> None:
        key = self.hosts.home(DESK) / ".ssh" / "id_ed25519"
        key.parent.mkdir(mode=0o700)
        self.hosts.run(DESK, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        for name in self.names:
            self.hosts.serve_ssh(name, key.with_suffix(".pub").read_text())
        self.hosts.run(DESK, *RAY, "get-auth-token", "--generate", **self._auth)
        self.config.write_text(yaml.safe_dump(self._settings()))
        self.hosts.run(
            DESK, *RAY, "up", "--yes", str(self.config), folder=ROOT, RAY_UP_enable_autoscaler_v2="0"
        )
        self.wait_for_nodes(len(self.names), 120)

    def _settings(self) -> dict[str, Any]:
        """Return cluster.yaml with the lines that are marked CHANGE changed, an environment, and one CPU a host."""
        settings: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        addresses = [self.hosts.addresses[name] for name in self.names]
        settings["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
        settings["auth"]["ssh_user"] = "root"
        settings["setup_commands"] = [ENVIRONMENT]
        own = " ".join(f"{name}={value}" for name, value in self.env.items())
        for kind in ("head", "worker"):
            commands = settings[f"{kind}_start_ray_commands"]
            start = commands[-1].replace("MLFLOW_TRACKING_URI=http://mlflow.example:5000", own)
            assert own in start
            assert f"SHOAL_HOME={SHARED}/shoal" in start
            commands[-1] = f"{start.strip()} --num-cpus=1 --object-store-memory=200000000"
        return settings

    def state(self) -> dict[str, Any]:
        """Return nodes, free and all CPUs, live actors and placement groups."""
        token = {**self._auth, "RAY_AUTH_TOKEN_PATH": f"{self.hosts.home(HEAD)}/.ray/shoal_token"}
        done = self.hosts.run(HEAD, sys.executable, "-c", STATE, **token)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def wait_for_nodes(self, count: int, seconds: float) -> None:
        eventually(lambda: len(self.state()["nodes"]) == count, seconds, f"{count} nodes are there")

    def submit(self, log: Path, *command: str) -> "subprocess.Popen[str]":
        """Submit a job, as `ray job submit` from a user's own folder; it ends with the job.

        Args:
            log: where its output goes; the job is called as it is.
        """
        own = ["--submission-id", log.stem, "--working-dir", ".", "--", "python", *command]
        submit = [*RAY, "job", "submit", *self._address, *own]
        return self.hosts.start(DESK, *submit, folder=self.project, log=log, **self._auth)

    def stop(self, job: str) -> None:
        """Stop a submitted job, as `ray job stop` does; it returns when the job has ended."""
        self.hosts.run(DESK, *RAY, "job", "stop", *self._address, job, **self._auth)

    @property
    def _address(self) -> list[str]:
        return ["--address", f"http://{self.hosts.addresses[HEAD]}:8265"]

    @property
    def project(self) -> Path:
        """The user's own folder: the jobs, and what a test adds."""
        folder = self.hosts.home(DESK) / "project"
        if not folder.exists():
            shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
        return folder


def reason() -> str | None:
    """Why there is no such cluster here."""
    return Hosts.reason() or missing(SSH_TOOLS)
