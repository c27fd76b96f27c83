"""What a job says of errors, warnings and interrupts, and its exit code."""

import logging
import signal
import subprocess
import sys

import pytest

from shoal.errors import ConfigError, Interrupted, TrainingError
from shoal.storage.run_folder import STOP, RunFolder
from shoal.terminal.errors import on_interrupt, run
from shoal.terminal.progress import SweepTable
from shoal.terminal.stages import Stages

# Its thread registers finalizers for ever, as one does that makes temporary folders while the job ends.
GIVEN_UP = """
import sys, threading, weakref
from shoal.terminal.errors import leave
sys.setswitchinterval(1e-6)
class Some: pass
kept = [Some() for _ in range(20_000)]
for one in kept:
    weakref.finalize(one, int)
def work():
    while True:
        kept.append(Some())
        weakref.finalize(kept[-1], int)
threading.Thread(target=work, name="shoal-test", daemon=True).start()
print("said", end="")
leave(3)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Signals, the log of shoal and the arguments are put back."""
    monkeypatch.setattr(sys, "argv", ["job", "a=1"])
    log = logging.getLogger("shoal")
    handlers, level, propagates = log.handlers[:], log.level, log.propagate
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    log.handlers, log.level, log.propagate = handlers, level, propagates
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (TrainingError, 1)],
    ids=lambda value: str(value),
)
def test_an_error_is_one_line_on_stderr_and_its_exit_code(error, code, capsys):
    def main(arguments):
        assert arguments == ["a=1"]
        raise error("lr=-1:\n   it should be positive")

    assert run(main) == code
    assert capsys.readouterr() == ("", "error: lr=-1: it should be positive\n")


def test_an_interrupt_that_went_well_is_no_error(capsys):
    def main(arguments):
        raise Interrupted("interrupted by SIGINT at step 3, after a checkpoint")

    assert run(main) == 130
    assert capsys.readouterr() == ("", "interrupted by SIGINT at step 3, after a checkpoint\n")


def test_warnings_go_to_the_stderr_of_the_moment(monkeypatch, capsys):
    class Proxy:
        written = ""

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    def main(arguments):
        logging.getLogger("shoal.any").warning("the disk is full")
        monkeypatch.setattr(sys, "stderr", proxy)
        logging.getLogger("shoal.any").warning("it is full")
        return 0

    proxy = Proxy()
    assert run(main) == 0
    assert proxy.written == "warning: it is full\n"
    assert capsys.readouterr().err == "warning: the disk is full\n"


def test_the_logger_is_afterwards_as_it_was():
    log = logging.getLogger("shoal")
    before = list(log.handlers), log.level, log.propagate
    assert run(lambda _: len(log.handlers)) == len(before[0]) + 1
    assert (log.handlers, log.level, log.propagate) == before


def test_the_first_interrupt_stops_once_and_the_second_ends_the_process(capsys):
    stopped = []
    on_interrupt(stopped.append)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stopped == ["SIGTERM"]
    assert capsys.readouterr().err == "\nSIGTERM: writing a checkpoint, then stopping\n"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_stops_the_run_though_stderr_is_closed(monkeypatch):
    class Closed:
        def write(self, text):
            raise ValueError("I/O operation on closed file")

    stopped = []
    on_interrupt(stopped.append)
    monkeypatch.setattr(sys, "stderr", Closed())
    signal.raise_signal(signal.SIGINT)
    assert stopped == ["SIGINT"]


def test_a_signal_stops_the_stage_in_progress_and_lets_no_other_begin(tmp_path, capsys):
    stages = Stages()
    first, second = RunFolder(str(tmp_path / "first")), RunFolder(str(tmp_path / "second"))
    first.create()
    first.acquire_lease()
    with stages("sweep", first) as listen:
        assert isinstance(listen, SweepTable)
        signal.raise_signal(signal.SIGTERM)
    assert first.read(STOP) == b"SIGTERM"
    with pytest.raises(Interrupted, match="SIGTERM between two stages"):
        stages("run", second).__enter__()
    assert capsys.readouterr().out == f"sweep   {first.uri}\n"


def test_a_thread_that_was_given_up_prints_nothing_while_the_process_ends():
    done = subprocess.run([sys.executable, "-c", GIVEN_UP], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "")
