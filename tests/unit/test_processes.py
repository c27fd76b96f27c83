"""Processes that answer through a pipe of their own, and streams that drop what cannot be written."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from shoal.processes import lossy, lossy_streams, start_answering, stop_signals_blocked

ANSWERS = """
import sys
print("a library prints this", flush=True)
from shoal.processes import open_answers
answers = open_answers(sys.argv[1])
for line in sys.stdin:
    print("View run at http://127.0.0.1:5000", flush=True)
    answers.write(line)
    answers.flush()
"""


def test_what_is_printed_does_not_get_into_the_answers():
    process, answers = start_answering(["-c", ANSWERS])
    with process, answers:
        process.stdin.write(json.dumps([1]) + "\n")
        process.stdin.flush()
        assert json.loads(answers.readline()) == [1]
        process.stdin.close()
        assert answers.read() == ""


def test_a_process_started_while_stop_signals_are_blocked_is_ended_by_its_pipe_alone():
    with stop_signals_blocked():
        process, answers = start_answering(["-c", ANSWERS])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)  # even before Python has started there
    with process, answers:
        process.stdin.write("1\n")
        process.stdin.flush()
        assert answers.readline() == "1\n"
        process.stdin.close()
        assert process.wait(60) == 0
    assert (
        signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} == set()
    )


def test_a_process_that_cannot_be_started_leaves_no_pipe_open(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        start_answering(["-c", ""])
    assert len(os.listdir("/proc/self/fd")) == before


PRINTS = """
import sys
from shoal.processes import lossy_streams
with lossy_streams():
    for number in range(20000):
        print("line", number)
        print("error", number, file=sys.stderr, flush=True)
sys.exit(3)
"""


@pytest.mark.parametrize("command", [
    '"$0" -c "$1" > /dev/full 2> /dev/full',
    '"$0" -c "$1" >&- 2>&-',
    'set -o pipefail; "$0" -c "$1" 2> /dev/null | head -1',
    '{ "$0" -c "$1" 2>&1; echo $? > code; } | head -1; exit $(cat code)',
], ids=["full", "closed", "pipe", "both"])  # fmt: skip
def test_what_cannot_be_printed_changes_no_exit_code(command, tmp_path):
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PRINTS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stdout + done.stderr


def test_a_stream_that_works_gets_all_lines(tmp_path):
    with (tmp_path / "out").open("w") as out, contextlib.redirect_stdout(out), lossy_streams():
        print("grüße")
    assert (tmp_path / "out").read_text() == "grüße\n"


def test_a_stream_in_memory_is_left_alone():
    memory = io.StringIO()
    assert lossy(memory) is memory


FREEZES = """
import atexit, gc, os
from shoal.processes import open_answers
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # runs after what is registered later
open_answers(os.dup(1))
"""


def test_a_process_that_answers_ends_without_a_search_for_garbage():
    done = subprocess.run([sys.executable, "-c", FREEZES], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr
