"""Whether the workers of a training still move, from what each of them said last.

Pure functions: they know neither who carries the workers' words nor what follows, and no torch. A worker says which
section it is in, for how long, and how long it took at most before. Workers wait for each other in most sections, so
one that takes long may be waiting: only where all of them take too long, or one that waits for nobody does, the group
hangs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.storage.failures import OUTAGE_S
from shoal.training.clock import STORAGE

# Noticed within 10 s or 5 times the section's slowest: what is said takes up to 2 s to arrive and to be confirmed,
# and more on a busy host.
FLOOR_S, TIMES = 7.0, 4.0
# Of a section that has not ended before: nothing is known of it. A compilation or a first epoch may take that long.
FIRST_S = 1800.0
# Where something else than training is waited for, which has a limit of its own or none that could be learnt from
# before: storage that is away is asked again for `OUTAGE_S`, a user's callback may do much now and then.
DECIDE = "decide"
PATIENT = (STORAGE, DECIDE, "profile")
CALLBACK = "on_"  # how the sections of a user's callbacks begin
PATIENT_S = OUTAGE_S + 60.0
SILENT_S = 4.0  # without a word from a worker, though it says one every half second
# Sections in which a worker waits for no other one, unless its stack says so: a batch may be counted by all of them.
OWN = ("data", "epoch start")
ENDED = "ended"
# Where a worker waits for the others: files of the innermost frame of its stack.
WAITS_IN = ("/shoal/distributed/", "/torch/distributed/", "/torch/autograd/")
SAYS = {
    "step": "an optimizer step",
    "first step": "a first optimizer step",
    "data": "a wait for data",
    "epoch start": "a wait for an epoch's first data",
    "evaluate": "an evaluation",
    "checkpoint": "a checkpoint",
    "tracking": "a sum of losses",
    STORAGE: "a wait for storage",
}


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker said last.

    Attributes:
        node: Ray's name of its host.
        log: path of what it prints, on its host.
        stay_s: seconds in the section, when it said so.
        slowest_s: of the section's earlier stays; None: there was none.
        silent_s: seconds since it said so.
        stack: of the training's thread, once a stay takes long.
        finite_step: the last whose loss is known to be finite.
        busy_s: seconds of its own work so far, without waits for other workers.
    """

    rank: int
    host: str
    node: str
    pid: int
    log: str
    section: str
    step: int
    stay_s: float
    slowest_s: float | None
    silent_s: float = 0.0
    stack: str = ""
    finite_step: int = 0
    busy_s: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether the whole process is stopped, or holds the interpreter's lock."""
        return self.silent_s > SILENT_S

    @property
    def place(self) -> str:
        return f"worker {self.rank} on {self.host}"

    @property
    def limit_s(self) -> float:
        """How long it may stay in its section."""
        if self.slowest_s is None:
            return FIRST_S
        usual_s = max(FLOOR_S, TIMES * self.slowest_s)
        is_patient = self.section in PATIENT or self.section.startswith(CALLBACK)
        return max(usual_s, PATIENT_S) if is_patient and not self.is_silent else usual_s

    @property
    def stayed_s(self) -> float:
        """Seconds in the section by now, unless it has left it without a word."""
        return self.stay_s + self.silent_s

    @property
    def is_doubtful(self) -> bool:
        """Whether it is silent in a section that may take long: only its host knows whether it is stopped."""
        return self.is_silent and self.slowest_s is None and self.section != ENDED and self.silent_s > FLOOR_S

    @property
    def is_overdue(self) -> bool:
        return self.stayed_s > self.limit_s


@dataclass(frozen=True)
class Hang:
    """Workers that do not move any more.

    Attributes:
        root: the one that the others wait for; None: none stands out.
        workers: all that had not ended.
    """

    root: WorkerStatus | None
    workers: tuple[WorkerStatus, ...]

    def __str__(self) -> str:
        one = self.root or self.workers[0]
        who = f"{one.place} has" if self.root else f"all {len(self.workers)} workers have"
        before = "never left before" if not one.slowest_s else f"at most {one.slowest_s:.2g} s before"
        doing = SAYS.get(one.section, f"section '{one.section}'")
        said = ", and does not answer" if one.is_silent else ""
        step = f"{'about' if one.is_silent else 'at'} step {one.step}"
        return f"{who} been in {doing} {step} for {one.stayed_s:.0f} s ({before}){said}"


def find_hang(statuses: Sequence[WorkerStatus], size: int) -> Hang | None:
    """Return the hang of a group of workers, or None while it moves, or while some of them have not begun."""
    working = tuple(status for status in statuses if status.section != ENDED)
    if len(statuses) < size or not working:
        return None
    overdue = [status for status in working if status.is_overdue]
    # Where any other moves, so does one whose words do not arrive.
    none_moves = all(status.stayed_s > SILENT_S for status in working)
    alone = [
        one
        for one in overdue
        if (one.is_silent and none_moves) or (one.section in OWN and not _waits(one.stack))
    ]
    if alone:
        return Hang(max(alone, key=lambda one: (one.is_silent, one.stayed_s)), working)
    return Hang(_odd_one(working), working) if len(overdue) == len(working) else None


def find_trial_hang(status: WorkerStatus) -> Hang | None:
    """Return the hang of a sweep's trial of one worker.

    A trial that waits for its scheduler's decision is no hang: it may be compared with others that take any time.
    """
    if status.section == DECIDE and not status.is_silent:
        return None
    return find_hang([replace(status, rank=0)], 1)


def _odd_one(workers: Sequence[WorkerStatus]) -> WorkerStatus | None:
    """Return the one worker that is at an earlier step, or the only one that does not wait inside a collective."""
    if len(workers) == 1:
        return workers[0]
    first = min(worker.step for worker in workers)
    behind = [worker for worker in workers if worker.step == first]
    if len(behind) == 1:
        return behind[0]
    busy = [worker for worker in workers if worker.stack and not _waits(worker.stack)]
    return busy[0] if len(busy) == 1 else None


def _waits(stack: str) -> bool:
    """Whether the innermost frame of a stack is one of a collective's."""
    frames = [line for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return bool(frames) and any(place in frames[-1] for place in WAITS_IN)
