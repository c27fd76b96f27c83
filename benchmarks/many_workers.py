"""Measures how 64 workers on 4 hosts start, lose one and go on: seconds, and what the driver takes of a core.

The driver is that of `jobs/train.py`: config, checks, shards, run folder, MLflow, watchdog, the watch of the workers,
the class of the failure, the next start. The workers are torch-free, since 64 processes with torch would take 20 GB:
each says what it does to the driver's board and makes steps of half a second that compute nothing, alone; worker 0
writes journal, timeline and checkpoints. One worker is killed. The peer is bare Ray Train with the same
number of workers that do nothing, on the same hosts: on few cores most of the time is 64 processes that import Ray.

The hosts are network namespaces (`tests/hosts.py`), which have 16 CPUs each as Ray counts them.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness import PEERS, ROOT, Figure, Report, Row, main, progress

sys.path.insert(0, str(ROOT / "tests"))  # whose hosts these are

from hosts import SHARED, Hosts

WORKERS, CPUS = 64, 16
HEAD, NAMES = "head", ("head", "w1", "w2", "w3")
STEP_S, CHECKPOINT_EVERY = 0.5, 4
AS_DRIVER = "--drive"
SAMPLE_S = 0.2
LIMIT_S = 400.0
SETTINGS = (
    "run_name=run",
    f"storage_path={SHARED}/runs",
    f"track.tracking_uri=sqlite:///{SHARED}/mlflow.db",
    "data.source=synthetic:classification?rows=20000",
    f"data.global_batch_size={WORKERS}",
    "train.max_steps=100000",
    "train.epochs=100000",
    f"scale.num_workers={WORKERS}",
)


def torch_free_worker(config: dict[str, Any]) -> None:
    """Make steps until a stop is requested, as a worker of Shoal would without a model; Ray Train calls it."""
    import hashlib
    import time

    import ray.train

    from shoal.cluster.status_board import speaking
    from shoal.runs.timeline import WorkerTimeline, worker_file
    from shoal.storage.records import FileDigest, Manifest, Outcome, Progress
    from shoal.storage.run_folder import CHECKPOINTS, SAVING, RunFolder
    from shoal.tracking.journal import Journal, NoJournal
    from shoal.training.clock import Clock

    rank = ray.train.get_context().get_world_rank()
    attempt, start = config["attempt"], config["start"]
    folder = RunFolder(config["folder"]).of_attempt(attempt, start=start)
    clock = Clock()
    timeline = WorkerTimeline(clock) if rank else WorkerTimeline(clock, folder, worker_file(attempt, start))
    with (
        speaking(config["board"], rank, clock) as is_to_leave,
        open(f"{config['times']}/{rank}", "a") as times,
    ):
        timeline.enter("restore")
        done = [name for name in folder.files(CHECKPOINTS) if name.endswith(f"/{Manifest.file}")]
        step = max((int(name.split("/")[0].removeprefix("step-")) for name in done), default=0)
        timeline.enter("steps", step)
        journal = NoJournal() if rank else Journal(folder, attempt)
        while not (is_stopping := folder.is_stop_requested() or is_to_leave()):
            clock.enter_step(step + 1, samples=1)
            time.sleep(config["step_s"])
            clock.spent["compute"] += config["step_s"]
            step += 1
            times.write(f"{start} {step} {time.time()}\n")
            times.flush()
            journal.log(step, {"train/loss": 1 / step})
            journal.flush()
            timeline.steps(step)
            if rank == 0 and step % config["checkpoint_every"] == 0:
                with clock.on("checkpoint"), folder.scratch(f"{CHECKPOINTS}/step-{step:06d}") as part:
                    journal.sync()
                    weights = bytes(1000)
                    (part / "model.safetensors").write_bytes(weights)
                    digest = FileDigest(bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest())
                    (part / Manifest.file).write_bytes(
                        Manifest(files={"model.safetensors": digest}).to_bytes()
                    )
                    folder.put_folder(part, f"{CHECKPOINTS}/step-{step:06d}", last=Manifest.file)
        if is_stopping and rank == 0:
            folder.write(SAVING, b"")
            ended = {"ended": "interrupted", "progress": Progress(step=step), "steps_planned": step}
            folder.save(Outcome(**ended, seconds=0.0, attempt_seconds=0.0, world_size=config["workers"]))


def drive() -> int:
    """Be the driver: the job `train`, whose workers are torch-free."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from shoal.cluster import worker_group
    from shoal.command import train
    from shoal.terminal.errors import run

    class TorchFreeGroup(worker_group.WorkerGroup):
        def _trainer(self, spec: Any, workers: int, folder: Any, decide: Any, watch: Any) -> Any:
            config = {
                "folder": folder.uri,
                "attempt": spec.attempt,
                "start": spec.start,
                "board": watch.board,
                "workers": workers,
                "times": f"{SHARED}/times",
                "step_s": STEP_S,
                "checkpoint_every": CHECKPOINT_EVERY,
            }
            placed = self._configs(spec, workers, folder, watch)
            return DataParallelTrainer(torch_free_worker, train_loop_config=config, **placed)

    worker_group.WorkerGroup = TorchFreeGroup  # type: ignore[misc]
    return run(lambda arguments: train.main(list(SETTINGS)))


@dataclass(frozen=True)
class Round:
    """Seconds of one round, and CPU seconds by process, over the whole of it.

    Attributes:
        worker_cpu_s: of all workers together, from their processes' start to the first steps.
    """

    start_s: float
    worker_cpu_s: float
    resume_s: float
    wall_s: float
    cpu_s: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.start_s + self.resume_s

    def share(self, process: str) -> float:
        """Return what a process took of a core."""
        spent = (seconds for name, seconds in self.cpu_s.items() if name.startswith(process))
        return sum(spent) / self.wall_s


class Watched:
    """A driver on the head: what its workers said, and the CPU seconds of it and of Ray's controller."""

    def __init__(self, hosts: Hosts, log: Path, *command: str) -> None:
        self._hosts, self._log, self._script = hosts, log, Path(command[0]).name
        self._times = hosts.shared / "times"
        self._times.mkdir()
        self.since_s = time.time()
        self.process = hosts.start(
            HEAD,
            sys.executable,
            *command,
            log=log,
            PYTHONPATH=f"{ROOT}/platform:{ROOT}/benchmarks",
            RAY_ADDRESS=f"{hosts.addresses[HEAD]}:6379",
            RAY_TRAIN_V2_ENABLED="1",
        )
        self.cpu_s: dict[str, float] = {}

    def await_steps(self, start: int) -> float:
        """Return when the last worker made its first step of a start, or of a later one.

        Raises:
            SystemExit: that takes too long, or the driver ended.
        """
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and self.process.poll() is None:
            first = [self._first(file, start) for file in self._times.iterdir()]
            if len(first) == WORKERS and None not in first:
                return max(at_s for at_s in first if at_s is not None)
            self._sample()
            time.sleep(SAMPLE_S)
        raise SystemExit(f"{self._script}: no start {start} of all workers:\n{self._log.read_text()[-3000:]}")

    def _first(self, file: Path, start: int) -> float | None:
        lines = (line.split() for line in file.read_text().splitlines())
        return next((float(line[2]) for line in lines if len(line) == 3 and int(line[0]) >= start), None)

    def _sample(self) -> None:
        controllers = self._hosts.processes(HEAD, "TrainController")
        for name, processes in (("driver", self._driver()), ("controller", controllers)):
            for one in processes:
                self.cpu_s[f"{name} {one.pid}"] = max(self.cpu_s.get(f"{name} {one.pid}", 0.0), cpu_s([one]))

    def _driver(self) -> list[psutil.Process]:
        """Return the process itself, without what entered the host for it."""
        with contextlib.suppress(psutil.Error):
            return list(psutil.Process(self.process.pid).children())
        return []

    def stop(self) -> int:
        """Interrupt the driver; return its exit code."""
        for one in self._driver():
            one.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT_S)


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that living processes have taken, together."""
    total = 0.0
    for one in processes:
        with contextlib.suppress(psutil.Error):
            spent = one.cpu_times()
            total += spent.user + spent.system
    return total


def measured(hosts: Hosts, log: Path, *command: str) -> Round:
    """Start a driver's workers, kill one, and wait until all are there again."""
    watched = Watched(hosts, log, *command)
    started_s = watched.await_steps(0)
    worker_cpu_s = cpu_s(one for name in NAMES for one in hosts.processes(name, "RayTrainWorker"))
    victim = hosts.processes("w2", "RayTrainWorker")[0]
    time.sleep(5 * STEP_S)  # a checkpoint is there
    killed_s = time.time()
    victim.send_signal(signal.SIGKILL)
    resumed_s = watched.await_steps(1)
    wall_s = time.time() - watched.since_s
    watched.stop()
    return Round(started_s - watched.since_s, worker_cpu_s, resumed_s - killed_s, wall_s, watched.cpu_s)


@contextlib.contextmanager
def cluster() -> Iterator[Hosts]:
    """Run four hosts with Ray."""
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))  # short: Ray's sockets lie below it
    with Hosts(folder) as hosts:
        for number, name in enumerate(NAMES, start=1):
            hosts.on(name, f"10.79.0.{number}")
            hosts.start_ray(name, HEAD, CPUS, RAY_worker_niceness="0", PYTHONPATH=f"{ROOT}/platform")
        yield hosts


def measure(repeat: int) -> Report:
    """Measure Shoal and its peer in turn, each on hosts of its own."""
    title = f"{WORKERS} torch-free workers on {len(NAMES)} hosts"
    if reason := Hosts.reason():
        return Report(title, [], [], [f"Not measured, for want of hosts: {reason}"])
    commands = {
        "Shoal": (str(Path(__file__).resolve()), AS_DRIVER),
        "bare Ray Train": (str(PEERS / "ray_train_idle.py"), str(WORKERS), f"{SHARED}/times"),
    }
    found: dict[str, list[Round]] = {name: [] for name in commands}
    for number in range(repeat):
        for name, command in commands.items():
            with cluster() as hosts, tempfile.TemporaryDirectory() as logs:
                one = measured(hosts, Path(logs) / "log", *command)
                found[name].append(one)
            spent = {f"{WORKERS} workers": one.worker_cpu_s} | one.cpu_s
            cpu = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
            progress(
                f"round {number + 1}/{repeat}: {name} started in {one.start_s:.1f} s, "
                f"went on after {one.resume_s:.1f} s; of {one.wall_s:.0f} s CPU: {cpu}"
            )
    rows = []
    for name, rounds in found.items():
        rows += [
            Row(f"{name}: from the command to a step of all", [one.start_s for one in rounds], "s"),
            Row(f"{name}: from the kill to a step of all", [one.resume_s for one in rounds], "s"),
            Row(f"{name}: both", [one.seconds for one in rounds], "s"),
            Row(f"{name}: CPU of all workers to their first step", [one.worker_cpu_s for one in rounds], "s"),
            Row(f"{name}: driver", [one.share("driver") for one in rounds], "cores"),
            Row(f"{name}: Ray Train's controller", [one.share("controller") for one in rounds], "cores"),
        ]
    figures = [
        Figure(f"{WORKERS} workers start, lose one and go on", rows[2].median, 60.0, False, unit="s"),
        Figure("the driver meanwhile", rows[4].median, 1.0, False, unit="cores"),
    ]
    note = f"{os.cpu_count()} cores for {WORKERS} workers."
    return Report(title, rows, figures, [note])


if __name__ == "__main__":
    if AS_DRIVER in sys.argv:
        sys.exit(drive())
    main(measure, repeat=1)
