"""Who works on a run folder: one process at a time, whatever the clocks say, and none after another took over."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.errors import LeaseLostError, StorageError
from shoal.storage import lease as lease_module
from shoal.storage import leased_folder as folder_module
from shoal.storage.lease import liveness, new_lease, renewed
from shoal.storage.run_folder import RunFolder

HOLDER = """
import sys
from shoal.storage.run_folder import RunFolder
RunFolder(sys.argv[1]).acquire_lease()
print("taken", flush=True)
sys.stdin.read()
"""

# Takes the lease of the folder of each line, at the moment that the line says, and says how that went.
RACER = """
import json, sys, time
from shoal.storage.run_folder import RunFolder
print("ready", flush=True)
for line in sys.stdin:
    uri, at_s = json.loads(line)
    folder = RunFolder(uri)
    while time.monotonic() < at_s:
        pass
    try:
        said = folder.acquire_lease()
    except Exception as error:
        said = f"{type(error).__name__} {getattr(error, 'exit_code', None)}: {error}"
    print(json.dumps(said), flush=True)
"""

# Looks at a folder after the clock was set: by so many seconds for `time.time`, and for psutil's time of the boot.
LOOKER = """
import os, sys, time
from pathlib import Path
import psutil
uri, seconds = sys.argv[1], int(sys.argv[2])
procfs = Path(sys.argv[3])
procfs.mkdir()
for entry in os.listdir("/proc"):
    if entry != "stat":
        (procfs / entry).symlink_to(f"/proc/{entry}")
stat = Path("/proc/stat").read_text().splitlines()
moved = [f"btime {int(line.split()[1]) + seconds}" if line.startswith("btime") else line for line in stat]
(procfs / "stat").write_text("\\n".join(moved) + "\\n")
psutil.PROCFS_PATH = str(procfs)
now = time.time
time.time = lambda: now() + seconds
from shoal.storage.run_folder import RunFolder
print(RunFolder(uri).holder() is not None)
"""


def run(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def folder(place):
    return RunFolder(place)


@pytest.fixture
def other(tmp_path):
    """A run folder whose lease another live process holds."""
    folder = RunFolder(str(tmp_path / "run"))
    process = run(HOLDER, folder.uri)
    assert process.stdout.readline() == "taken\n"
    yield folder, process
    process.kill()
    process.communicate()


@pytest.fixture
def impatient(monkeypatch):
    """Let a process that cannot be looked up be watched for a moment, and let no look be left out."""
    monkeypatch.setattr(folder_module, "LEASE_S", 0.3)
    monkeypatch.setattr(folder_module, "WATCH_EVERY_S", {True: 0.05, False: 0.05})
    monkeypatch.setattr(folder_module, "FENCE_EVERY_S", 0.0)


def elsewhere(folder):
    """Let the lease of a folder be of a process of another host; return it."""
    lease = folder.lease().replace(host="elsewhere pid:[1]", pid=1)
    folder.save(lease, inside=f"attempts/{lease.attempt:04d}")
    return lease


# One at a time.


def test_each_attempt_has_the_next_number(folder):
    assert folder.holder() is None
    for number in (1, 2, 3):
        assert folder.acquire_lease() == folder.attempt == number
        assert folder.holder().pid == os.getpid()
        folder.release_lease()
        assert folder.holder() is None


def test_the_attempts_of_an_earlier_version_count_and_its_process_is_looked_up(folder):
    """It kept one lease, beside run.json, with the time at which psutil saw the process start."""
    mine = lease_module._created(os.getpid())
    earlier = {"version": 1, "host": new_lease(1).host, "pid": os.getpid(), "started": mine}
    folder.write("lease.json", json.dumps({**earlier, "attempt": 3, "beat_ms": 1}).encode())
    with pytest.raises(StorageError, match=f"process {os.getpid()} on "):
        folder.acquire_lease()
    folder.write("lease.json", json.dumps({**earlier, "attempt": 3, "started": "1.00"}).encode())
    assert folder.acquire_lease() == 4


def test_a_folder_that_is_held_is_refused_with_host_pid_and_since_when(folder):
    folder.acquire_lease()
    with pytest.raises(StorageError) as caught:
        RunFolder(folder.uri).acquire_lease()
    assert re.search(
        rf"process {os.getpid()} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: wait", str(caught.value)
    )
    assert caught.value.exit_code == 2


def test_what_was_read_before_another_process_worked_is_not_built_upon(folder):
    late = RunFolder(folder.uri)
    late.check_free()
    folder.acquire_lease()
    folder.release_lease()
    with pytest.raises(
        StorageError, match=r"was worked on by .* while this process read it: run the same command"
    ):
        late.acquire_lease()
    late.check_free()
    assert late.acquire_lease() == 2


@pytest.mark.long
def test_of_two_processes_at_once_one_gets_the_folder_a_hundred_times(place):
    """The error of the other names the one that has it."""
    racers = [run(RACER), run(RACER)]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for number in range(100):
            at_s = time.monotonic() + 0.005
            for racer in racers:
                racer.stdin.write(json.dumps([f"{place}/{number}", at_s]) + "\n")
                racer.stdin.flush()
            said = [json.loads(racer.stdout.readline()) for racer in racers]
            assert said.count(1) == 1, said
            winner = said.index(1)
            assert re.match(
                rf"StorageError 2: .* by process {racers[winner].pid} on \S+, since .*: wait",
                said[1 - winner],
            ), said
            assert RunFolder(f"{place}/{number}").lease().pid == racers[winner].pid
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


# Who lives.


def test_another_live_process_holds_its_folder_and_a_killed_one_no_more(other):
    folder, process = other
    assert folder.holder().pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    # Not waited for: a zombie is as dead as one that is gone.
    deadline = time.monotonic() + 10
    while folder.holder() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert folder.holder() is None
    assert folder.acquire_lease() == 2


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"start_ticks": None, "started": "1000000000.00"}])
def test_a_pid_that_was_given_to_another_process_does_not_hold_the_folder(other, change):
    folder, _ = other
    folder.save(folder.lease().replace(**change), inside="attempts/0001")
    assert folder.holder() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="start ticks are read in /proc")
@pytest.mark.parametrize(
    "seconds", [-7200, 1, *(pytest.param(s, marks=pytest.mark.long) for s in (-1, 7200))]
)
def test_a_step_of_the_clock_kills_no_process(other, tmp_path, seconds):
    folder, _ = other
    looker = run(LOOKER, folder.uri, seconds, tmp_path / "procfs")
    assert looker.communicate()[0] == "True\n"


def test_after_a_restart_of_the_host_and_of_a_hidden_process_it_is_not_known(monkeypatch):
    mine = new_lease(1)
    assert liveness(mine) == "alive"
    assert liveness(mine.replace(boot_id="another")) == "unknown"
    assert liveness(mine.replace(host="elsewhere")) == "unknown"
    assert liveness(mine.replace(pid=None)) == "gone"

    def kill(*_):
        raise PermissionError

    monkeypatch.setattr(lease_module.os, "kill", kill)
    assert liveness(mine.replace(pid=2**22 + 1)) == "unknown"


@pytest.mark.parametrize("clock_s", [-7200, 0, 7200])
def test_a_process_of_another_host_is_gone_if_its_lease_does_not_change_and_that_is_said(
    folder, impatient, caplog, monkeypatch, clock_s
):
    folder.acquire_lease()
    elsewhere(folder)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock_s)
    later = RunFolder(folder.uri)
    assert later.holder() is not None
    assert later.watch_holder() is None
    assert re.search(r"left by process 1 on elsewhere, since .*: waiting 0 s for a sign of life", caplog.text)
    assert later.acquire_lease() == 2
    assert caplog.text.count("for a sign of life") == 1  # it is not watched again


@pytest.mark.parametrize("clock_s", [-7200, 0, 7200])
def test_a_process_of_another_host_whose_lease_changes_is_alive(folder, impatient, monkeypatch, clock_s):
    monkeypatch.setattr(folder_module, "LEASE_S", 20.0)
    folder.acquire_lease()
    lease = elsewhere(folder)
    later, sleep, now = RunFolder(folder.uri), time.sleep, time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock_s)

    def renew_meanwhile(seconds):
        folder.save(renewed(lease), inside="attempts/0001")
        sleep(seconds)

    monkeypatch.setattr(folder_module.time, "sleep", renew_meanwhile)
    with pytest.raises(StorageError, match="process 1 on elsewhere"):
        later.acquire_lease()


def test_a_renewal_counts_and_changes_nothing_that_says_whose_lease_it_is(folder):
    folder.acquire_lease()
    before = folder.lease()
    folder.renew_lease()
    after = folder.lease()
    assert after.beat == before.beat + 1
    assert after.replace(beat=0, beat_ms=0) == before.replace(beat=0, beat_ms=0)


# None after another took over.


@pytest.fixture
def lost(folder, impatient):
    """Two folder objects of one folder: of an attempt that was taken for dead, and of the one that took over."""
    folder.write("kept", b"earlier")
    folder.acquire_lease()
    mine = folder.lease()
    elsewhere(folder)
    later = RunFolder(folder.uri)
    later.acquire_lease()
    folder_lease = later.lease()
    RunFolder(folder.uri).save(mine, inside="attempts/0001")  # it wakes up
    assert later.lease() == folder_lease
    return folder, later


def test_an_attempt_that_was_taken_over_writes_and_deletes_nothing_more(lost, tmp_path):
    earlier, later = lost
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "state.json").write_text("{}")
    out = earlier.appender("journal/0001.jsonl")  # which makes an empty file on a disk
    before = later.names()
    attempts = [
        lambda: earlier.write("kept", b"later"),
        lambda: earlier.delete("kept"),
        lambda: earlier.put_folder(tmp_path / "made", "checkpoints/step-000001"),
        lambda: out.write(b"{}\n"),
        lambda: out.sync(),
        lambda: earlier.inner("trials/t0000").write("run.json", b"{}"),
        lambda: RunFolder(f"{earlier.uri}/trials/t0000").of_attempt(1, earlier).write("run.json", b"{}"),
        earlier.renew_lease,
        earlier.check_fence,
    ]
    for attempt in attempts:
        with pytest.raises(
            LeaseLostError, match=r"attempt 1 at .* taken over by attempt 2 of process \d+ on"
        ):
            attempt()
    assert later.read("kept") == b"earlier"
    assert later.names() == before
    assert all(later.size(f"journal/{name}") == 0 for name in later.names("journal"))
    later.write("kept", b"later")
    later.renew_lease()


@pytest.mark.parametrize("inside", ["", "trials/t0000"])
def test_workers_write_nothing_more_once_those_of_their_attempt_were_started_again(
    folder, inside, monkeypatch
):
    monkeypatch.setattr(folder_module, "FENCE_EVERY_S", 0.0)
    folder.acquire_lease()
    driver = folder.inner(inside) if inside else folder
    first = RunFolder(driver.uri).of_attempt(1, folder, driver.begin_start())
    out = first.appender("journal/0001.jsonl")
    out.write(b"1\n")
    second = RunFolder(driver.uri).of_attempt(1, folder, driver.begin_start())
    for write in (lambda: first.write("kept", b"first"), lambda: out.write(b"2\n"), first.check_fence):
        with pytest.raises(LeaseLostError, match="was taken for lost, and another one was started"):
            write()
    second.write("kept", b"second")
    driver.write("driver's", b"own")
    assert driver.begin_start() == 2
    assert driver.read("kept") == b"second"


def test_an_attempt_that_was_taken_over_leaves_the_lease_of_the_other_alone(lost):
    earlier, later = lost
    before = later.lease()
    earlier.release_lease()
    assert later.lease() == before
    assert later.holder() == before


def test_a_lease_that_is_not_that_of_this_process_is_neither_renewed_nor_released(other):
    folder, process = other
    folder.of_attempt(1)
    with pytest.raises(LeaseLostError, match="is not that of this process"):
        folder.renew_lease()
    folder.release_lease()
    assert folder.holder().pid == process.pid


def test_an_object_store_is_looked_at_for_a_later_attempt_every_few_seconds_alone(s3, monkeypatch):
    folder = RunFolder(f"{s3}/looks")
    folder.acquire_lease()
    looks, names = [], RunFolder.names

    def count(self, name="", most_tries=None):
        looks.append(name)
        return names(self, name, most_tries)

    monkeypatch.setattr(folder_module.Folder, "names", count)
    for number in range(20):
        folder.write(f"{number}", b"x")
    assert looks == ["attempts/0002"]
    folder.check_fence()
    assert looks == ["attempts/0002"] * 2
