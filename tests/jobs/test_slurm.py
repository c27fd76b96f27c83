"""deploy/slurm on one node, with Slurm's two commands replaced by ones that run here what they would run there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from running import ROOT, STEP_TIMEOUT_S, Place, end, free_port
from shoal.tracking.journal import has_journal

SCRIPT = ROOT / "deploy" / "slurm" / "shoal.sbatch"
COMMANDS = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/bash\nhostname\n",
    "hostname": '#!/bin/bash\n[ "${1-}" = --ip-address ] && echo 127.0.0.1 || exec /bin/hostname\n',
    "ray": f'#!/bin/bash\nexec {sys.executable} -m ray.scripts.scripts "$@" --temp-dir="$RAY_FOLDER"\n',
    "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    "activate": "",
}

pytestmark = pytest.mark.long


def test_a_job_that_slurm_ends_has_a_checkpoint_and_its_own_exit_code(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in COMMANDS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {
        **place.env,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "platform"),
        "SHOAL_VENV": str(tmp_path / "venv"),
        "RAY_FOLDER": f"/tmp/shoal-{os.getpid()}",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_CPUS_PER_TASK": "2",
    }
    settings = [
        "run_name=run",
        "scale.num_workers=1",
        "train.epochs=1000000",
        "checkpoint.every_steps=1000000",
    ]
    process = subprocess.Popen(
        ["bash", str(SCRIPT), str(ROOT / "jobs" / "train.py"), *settings],
        cwd=place.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + STEP_TIMEOUT_S
        while not has_journal(place.folder("run"), 1) and time.monotonic() < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.5)
        process.terminate()
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            end(psutil.Process(process.pid))
        shutil.rmtree(environment["RAY_FOLDER"], ignore_errors=True)
    assert process.returncode == 130, out + err
    assert place.folder("run").identity().status == "KILLED"
    assert [name for name in place.folder("run").names("checkpoints") if name.startswith("step-")]
