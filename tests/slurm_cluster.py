"""A Slurm cluster on such hosts: slurmctld on the first, slurmd and munged on each, and jobs by sbatch."""

import secrets
import subprocess
import sys
from pathlib import Path

from hosts import SHARED, Hosts, missing
from running import ROOT, eventually

SCRIPT = ROOT / "deploy" / "slurm" / "shoal.sbatch"
TOOLS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
# Processes are followed by their parents, since hosts made of namespaces have no cgroups of their own. A job that was
# requeued may start once its first credential has expired, 2 minutes by default.
CONFIG = """
ClusterName=shoal
SlurmctldHost={first}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={state}
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
UnkillableStepTimeout=120
NodeName=DEFAULT CPUs={cpus} RealMemory=4000
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 OverTimeLimit=0
"""


def reason() -> str | None:
    """Why there is no such cluster here."""
    return Hosts.reason() or missing(TOOLS)


class SlurmCluster:
    """Slurm's daemons on hosts that are on.

    Args:
        names: the nodes; the first one has the controller too.
        cpus: that Slurm gives away on each node, whatever the machine has.
    """

    def __init__(self, hosts: Hosts, names: list[str], cpus: int) -> None:
        self._hosts, self._names = hosts, names
        self._state = hosts.shared / "slurm"
        self._conf = f"{SHARED}/slurm/slurm.conf"
        nodes = [f"NodeName={name} NodeAddr={hosts.addresses[name]}" for name in names]
        self._text = CONFIG.format(
            first=names[0],
            address=hosts.addresses[names[0]],
            state=f"{SHARED}/slurm/state",
            cpus=cpus,
            nodes="\n".join(nodes),
        )

    @property
    def env(self) -> dict[str, str]:
        own = {"SHOAL_VENV": sys.prefix, "SHOAL_HOME": f"{SHARED}/shoal", "RAY_TMPDIR": "/tmp/ray"}
        return {"SLURM_CONF": self._conf, **own}

    def start(self) -> None:
        """Start all daemons, and wait until the controller has every node."""
        (self._state / "state").mkdir(parents=True)
        (self._state / "slurm.conf").write_text(self._text)
        # Without this line slurmd looks for cgroups, and ends where it finds none; nothing here uses them.
        (self._state / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = self._state / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for name in self._names:
            own = [
                f"--{file}=/run/munge.{file.split('-')[0]}" for file in ("socket", "pid-file", "seed-file")
            ]
            munged = ["munged", "--foreground", "--force", f"--key-file={SHARED}/slurm/munge.key", *own]
            self._start(name, *munged, "--log-file=/run/munge.log")
        self._start(self._names[0], "slurmctld", "-D")
        for name in self._names:
            self._start(name, "slurmd", "-D", "-N", name)
        eventually(lambda: self._idle() == len(self._names), 60, "Slurm's nodes are there")

    def _start(self, name: str, *command: str) -> None:
        log = self._hosts.home(name) / f"{command[0]}.log"
        self._hosts.start(name, *command, log=log, **self.env)

    def _idle(self) -> int:
        done = self.call("sinfo", "--noheader", "--Node", "--states=idle", check=False)
        return len(done.stdout.splitlines())

    def call(
        self, *command: str, check: bool = True, folder: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Call one of Slurm's commands on the first node."""
        return self._hosts.run(self._names[0], *command, check=check, folder=folder, **self.env)

    def submit(self, folder: Path, *arguments: str) -> str:
        """Submit the repository's sbatch file; return the job's id.

        Args:
            folder: where it is called, which gets the job's log.
            arguments: options of sbatch and the command, which has none.
        """
        options = [one for one in arguments if one.startswith("--")]
        command = [one for one in arguments if not one.startswith("--")]
        done = self.call("sbatch", "--parsable", *options, str(SCRIPT), *command, folder=folder)
        return done.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job, e.g. JobState, ExitCode, Restarts."""
        words = self.call("scontrol", "show", "job", job, "--oneliner").stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)
