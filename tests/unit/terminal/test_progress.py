"""What a person sees of a training or a sweep while it lasts, read back from the bytes that reach the stream."""

import errno
import io
import itertools
import re
import sys
import tracemalloc

import pytest

from shoal.storage.records import TrialRow
from shoal.terminal import progress
from shoal.terminal.progress import ProgressLine, Speed, SweepTable, evaluation_text, progress_text
from shoal.tracking.journal import MetricPoint
from shoal.tracking.status import TrainStatus
from shoal.workflows.tune.state import SweepStatus

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and what is left on its screen after the control sequences."""

    def isatty(self):
        return True

    @property
    def screen(self):
        """The lines on the screen, by the few sequences that a live display uses."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif part == "\r":
                column = 0
            elif part == "\x1b[2K":
                lines[row] = ""
            elif move := re.fullmatch(r"\x1b\[(\d+)A", part):
                row -= int(move[1])
            elif not part.startswith(ESCAPE):
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines if line.strip()]


class Broken(io.StringIO):
    """A pipe whose reader is gone, or a terminal that was closed."""

    def __init__(self, is_terminal, error):
        super().__init__()
        self.isatty = lambda: is_terminal
        self.error = error

    def write(self, text):
        raise self.error


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    return Terminal()


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a quarter of a second whenever it is read."""
    ticks = itertools.count(1000.0, 0.25)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def status(step, points=(), steps=900, **changes):
    metrics = {point.key: point.value for point in points}
    return TrainStatus(
        step, steps, metrics, is_training=step > 0, steps_per_epoch=45, new_points=points, **changes
    )


def evaluated(step, loss, is_best):
    """The points of one evaluation, as the loop logs them."""
    metrics = {"train/loss": loss / 2, "val/loss": loss, "val/accuracy": 0.9} | (
        {"best/step": step} if is_best else {}
    )
    return [MetricPoint(key, value, step, 0) for key, value in metrics.items()]


def sweep_status(ended, running=(), total=4, seconds=10.0, note="", new=0, replayed=0):
    """The last `new` of the trials that have ended are new."""
    rows = [TrialRow(n, f"t{n:04d}", "finished", {"optim.lr": 0.1}, 0.5 + n, steps=90) for n in range(ended)]
    at_work = [TrialRow(n, f"t{n:04d}", "running", {"optim.lr": 0.1}, None) for n in running]
    best = rows[0] if rows else None
    return SweepStatus(rows[ended - new :], at_work, best, ended, replayed, total, "val/loss", seconds, note)


# -- a training --------------------------------------------------------------------------------------------------


def test_a_log_gets_few_plain_lines_with_the_first_evaluations_and_the_last_step(clock):
    out = io.StringIO()
    with ProgressLine(out) as line:
        line(status(0))
        for step in range(2, 901, 2):
            line(status(step, evaluated(step, 1.0, is_best=True)))
        line(status(900, note="verifying the model"))
    first, *between, last, note = out.getvalue().splitlines()
    history = [text for text in between if text.startswith("epoch")]
    between = [text for text in between if text.startswith("step")]
    assert len(history) == progress.MOST_HISTORY
    assert history[-1].startswith("epoch  1.8  step  80/900  train/loss 0.5        val/loss 1 ")
    assert first == "starting; 900 steps to go"
    assert last.startswith("step 900/900  train/loss 0.5  val/loss 1  val/accuracy 0.9  ")
    assert last.endswith(" steps/s")
    assert note == "verifying the model ..."
    assert 1 <= len(between) <= 20, "a line each 10 seconds, not one for each of 450 reports"
    assert all("ETA" in text for text in between[1:])
    assert ESCAPE not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_a_terminal_keeps_a_line_for_each_evaluation_above_one_live_line(terminal, clock):
    with ProgressLine(terminal) as line:
        line(status(0))
        line(status(50, evaluated(45, 1.5, is_best=True)))
        line(status(140, [*evaluated(90, 0.5, is_best=True), *evaluated(135, 0.75, is_best=False)]))
        shown = terminal.screen
        line(status(900, note="verifying the model"))
    *history, live = shown
    assert history == [
        "starting; 900 steps to go",
        "epoch  1  step  45/900  train/loss 0.75       val/loss 1.5        val/accuracy 0.9        best",
        "epoch  2  step  90/900  train/loss 0.25       val/loss 0.5        val/accuracy 0.9        best",
        "epoch  3  step 135/900  train/loss 0.375      val/loss 0.75       val/accuracy 0.9",
    ]
    assert live.startswith("step 140/900  train/loss 0.375  val/loss 0.75  val/accuracy 0.9")
    assert terminal.screen == [*history, live, "verifying the model ..."]


def test_the_cursor_is_hidden_only_while_the_line_is_live(terminal):
    with ProgressLine(terminal) as line:
        line(status(1))
        assert terminal.getvalue().count("\x1b[?25l") == 1
        assert "\x1b[?25h" not in terminal.getvalue()
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_what_others_print_meanwhile_stands_above_the_live_line(terminal, clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    long = "warning: " + "x" * 200
    with ProgressLine(terminal) as line:
        line(status(10))
        print(long, file=sys.stderr)
        print("to stdout")
        line(status(20))
    assert sys.stderr is terminal
    assert terminal.screen[:2] == [long, "to stdout"], "in one piece, to be copied"
    assert terminal.screen[2].startswith("step 20/900")
    assert len(terminal.screen) == 3


def test_stderr_that_goes_elsewhere_is_left_alone(terminal, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with ProgressLine(terminal) as line:
        line(status(10))
        print("warning: disk", file=sys.stderr)
    assert errors.getvalue() == "warning: disk\n"
    assert "disk" not in terminal.getvalue()


def test_an_exception_leaves_the_terminal_as_it_was(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal)

    def train():
        with ProgressLine(terminal) as line:
            line(status(10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert sys.stdout is terminal
    assert terminal.getvalue().endswith("\x1b[?25h")


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, ""), OSError(errno.EIO, ""), ValueError("closed")]
)
def test_a_stream_that_breaks_ends_the_display_and_not_the_training(is_terminal, error, monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    # rich answers a broken pipe by pointing the process's stdout to /dev/null: not that of the tests.
    monkeypatch.setattr("rich.console.Console.on_broken_pipe", lambda self: sys.exit(1))
    before = sys.stdout, sys.stderr
    with ProgressLine(Broken(is_terminal, error)) as line:
        for step in range(0, 900, 45):
            line(status(step, evaluated(step, 1.0, is_best=True)))
        line(status(900, note="verifying the model"))
    assert (sys.stdout, sys.stderr) == before


def test_a_closed_stream_is_written_to_no_more():
    out = io.StringIO()
    out.close()
    with ProgressLine(out) as line:
        line(status(900))


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with ProgressLine(terminal) as line:
        line(status(0))
    assert terminal.getvalue() == "starting; 900 steps to go\n"


def test_a_long_training_keeps_no_more_memory(clock):
    line = ProgressLine(io.StringIO())
    line._screen._out = None  # what is written is not kept either
    for step in range(1, 500):
        line(status(step, evaluated(step, 1.0, is_best=True), steps=10**6))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(500, 20_000):
        line(status(step, evaluated(step, 1.0, is_best=True), steps=10**6))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000


def test_the_speed_counts_the_steps_of_this_attempt_alone(clock):
    out = io.StringIO()
    with ProgressLine(out) as line:
        line(TrainStatus(500, 900, {}, is_training=False, steps_per_epoch=45))
        for number in range(1, 100):
            line(status(500 + number))
    first, *rest = out.getvalue().splitlines()
    assert first == "resuming at step 500 of 900"
    speeds = [float(re.search(r"([\d.]+) steps/s", text)[1]) for text in rest[1:]]
    assert speeds
    assert max(speeds) <= 4, "a step each quarter of a second or slower, not 500 at once"


@pytest.mark.parametrize(
    ("begins", "steps"), [(0, 45), (400, 900)], ids=["another training", "back to a checkpoint"]
)
def test_the_speed_is_that_of_the_steps_since_the_last_begin(clock, begins, steps):
    out = io.StringIO()
    with ProgressLine(out) as line:
        line(TrainStatus(500, 900, {}, is_training=False, steps_per_epoch=45))
        for number in range(1, 100):
            line(status(500 + number))
        line(TrainStatus(begins, steps, {}, is_training=False, steps_per_epoch=45))
        for number in range(1, 46):
            line(TrainStatus(begins + number, steps, {}, is_training=True, steps_per_epoch=45))
    lines = out.getvalue().splitlines()
    again = lines.index("starting; 45 steps to go" if begins == 0 else "resuming at step 400 of 900")
    speeds = [float(found[1]) for text in lines[again:] if (found := re.search(r"(-?[\d.]+) steps/s", text))]
    assert speeds
    assert 0 < min(speeds) <= max(speeds) <= 4


@pytest.mark.parametrize("seconds", [0.5, 60.0], ids=["fast", "slower than the window"])
def test_the_speed_is_known_of_fast_and_of_slow_steps(seconds):
    speed = Speed()
    assert speed.steps_per_s() == 0.0
    for step in range(100):
        speed.add(step * seconds, step)
    assert speed.steps_per_s() == pytest.approx(1 / seconds)
    assert len(speed._seen) <= 22


@pytest.mark.parametrize("seconds", [0.1, 60.0], ids=["fast", "slower than the window"])
def test_a_pause_is_no_slow_step(seconds):
    speed = Speed()
    for step in range(20):
        speed.add(step * seconds, step)
    until = 19 * seconds + 500
    for step in range(20):
        speed.add(until + step * seconds, 20 + step)
        assert speed.steps_per_s() == pytest.approx(1 / seconds) or step < 3


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (120, "step 45/900  train/loss 0.75  val/loss 1.5  val/accuracy 0.9  30 steps/s  ETA 0:28"),
        (70, "step 45/900  train/loss 0.75  val/loss 1.5  30 steps/s  ETA 0:28"),
        (60, "step 45/900  train/loss 0.75  30 steps/s  ETA 0:28"),
        (20, "step 45/900  30 steps/s  ETA 0:28"),
    ],
)
def test_a_narrow_terminal_loses_metrics_before_speed_and_eta(columns, expected):
    assert progress_text(status(45, evaluated(45, 1.5, is_best=True)), 30.0, columns) == expected


def test_a_narrow_history_keeps_epoch_and_validation_loss():
    (evaluation,) = progress.EvaluationHistory().add(evaluated(45, 1.5, is_best=True))
    assert evaluation_text(evaluation, status(45), 60) == (
        "epoch  1  val/loss 1.5        val/accuracy 0.9        best"
    )
    assert evaluation_text(evaluation, status(45), 45) == "epoch  1  val/loss 1.5        best"


def test_an_evaluation_within_an_epoch_has_the_epochs_fraction():
    (evaluation,) = progress.EvaluationHistory().add(evaluated(60, 1.5, is_best=False))
    assert evaluation_text(evaluation, status(60), 120).startswith("epoch  1.3  step  60/900")


# -- a sweep -----------------------------------------------------------------------------------------------------


def test_a_log_gets_a_line_for_each_trial_that_ends():
    out = io.StringIO()
    with SweepTable(out) as table:
        table(sweep_status(0, running=[0, 1]))
        table(sweep_status(1, running=[1], new=1))
        table(sweep_status(1, running=[1]))
        table(sweep_status(2, new=1, note="verifying the best model"))
    assert out.getvalue().splitlines() == [
        "t0000 finished   val/loss 0.5  optim.lr=0.1  "
        "(1/4 trials  1 running  best t0000 val/loss 0.5  ETA 0:30)",
        "t0001 finished   val/loss 1.5  optim.lr=0.1  "
        "(2/4 trials  0 running  best t0000 val/loss 0.5  ETA 0:10)",
        "verifying the best model ...",
    ]


def test_a_terminal_shows_the_best_and_the_running_trials_in_a_table_redrawn_in_place(terminal, clock):
    with SweepTable(terminal) as table:
        table(sweep_status(0, running=[0, 1]))
        assert len(terminal.screen) == 4
        table(sweep_status(1, running=[1, 2]))
        assert terminal.screen == [
            "1/4 trials  2 running  best t0000 val/loss 0.5  ETA 0:30",
            "  trial   status  val/loss  steps  optim.lr",
            "  t0000     best       0.5     90       0.1",
            "  t0001  running       ...      0       0.1",
            "  t0002  running       ...      0       0.1",
        ]
        table(sweep_status(4))
        table(sweep_status(4, note="verifying the best model"))
    assert terminal.screen == [
        "4/4 trials  0 running  best t0000 val/loss 0.5",
        "verifying the best model ...",
    ]


def test_the_table_is_cut_off_at_the_edge_of_the_terminal(terminal, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with SweepTable(terminal) as table:
        table(sweep_status(1, running=[1]))
    assert [len(line) for line in terminal.screen[:2]] == [40, 40]
    assert all(line.endswith("…") for line in terminal.screen[:2])


def test_the_eta_of_a_resumed_sweep_counts_the_trials_of_this_attempt_alone():
    out = io.StringIO()
    with SweepTable(out) as table:
        table(sweep_status(50, total=100, seconds=0.1, new=50, replayed=50))
        assert "ETA" not in out.getvalue()
        table(sweep_status(51, total=100, seconds=10.0, new=1, replayed=50))
    assert out.getvalue().endswith("ETA 8:10)\n"), "49 more, 10 seconds each"
