"""The line that a job ends with opens MLflow on the store that the job used."""

import json
import os
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from running import ROOT, Place, answers, eventually, free_port

SETTINGS = ("data.source=sklearn:digits", "scale.num_workers=0", "train.max_steps=2", "run_name=seen")


@pytest.mark.long
def test_the_printed_command_opens_the_store_of_a_job_that_ran_in_another_folder(
    place: Place, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = place.run("train", *SETTINGS, "track.tracking_uri=sqlite:///~/x.db", HOME=str(home))
    assert done.code == 0, done.out + done.err
    assert (home / "x.db").is_file()
    [line] = [line for line in done.out.splitlines() if line.startswith("look at it: ")]
    command = shlex.split(line.removeprefix("look at it: "))
    assert command[:3] == ["make", "-C", str(ROOT)]
    port = free_port()
    # What `setup` installs is there: this is the interpreter of the tests.
    command += [f"PORT={port}", "-o", "setup"]
    shown = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "MAKEFLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/health"), 60, "MLflow's UI starts")
        asked = urllib.request.Request(
            f"{url}/api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": ["1"]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            runs = json.load(answer)["runs"]
        assert [run["info"]["run_name"] for run in runs] == ["seen"]
    finally:
        os.killpg(shown.pid, signal.SIGKILL)
        shown.wait()
