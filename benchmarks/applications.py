"""Speech recognition and object detection until a metric is reached: Shoal against a plain PyTorch loop.

The configs are `jobs/configs/speech.yaml`, until the word error rate of the validation split is at most 5%, and
`jobs/configs/detection.yaml`, until its AP50 is at least 0.90, both on data that is made here. The plain loop trains
the same model on the same rows with the same loss, optimizer and schedule. Measured are the seconds from the end of the
first step to the end of the evaluation that reached the metric; one thread for each worker. One worker and two take
the same global batch.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import (
    PEERS,
    ROOT,
    Figure,
    Report,
    Row,
    main,
    progress,
    ratios,
    ray_cluster,
    run,
    run_shoal,
    scratch,
)
from quiet import Quiet, Timing


@dataclass(frozen=True)
class Application:
    """A config, and what is reached.

    Attributes:
        target: as `train.target` takes it.
    """

    config: str
    target: str

    @property
    def settings(self) -> list[str]:
        return [f"train.target={{{self.target}}}", "scale.cpus_per_worker=1"]


APPLICATIONS = {
    "speech to WER 5%": Application("speech", "val/wer: 0.05"),
    "detection to AP50 0.90": Application("detection", "val/map_50: 0.90"),
}


def plain_loop(application: Application, folder: Path) -> Timing:
    """Return the seconds of the peer."""
    out = folder / "loop.json"
    config = ROOT / "jobs" / "configs" / f"{application.config}.yaml"
    run(
        [
            sys.executable,
            str(PEERS / "applications_loop.py"),
            str(config),
            *application.settings,
            f"--out={out}",
        ]
    )
    found = json.loads(out.read_text())
    progress(f"{application.config}: plain loop, {found}")
    return Timing(found["reached_s"] - found["first_s"], found["first_s"], found["reached_s"])


def shoal(application: Application, workers: int, folder: Path) -> Timing:
    """Return the seconds of `jobs/train.py`.

    Raises:
        SystemExit: the metric was not reached.
    """
    with ray_cluster() as cluster:
        done = run_shoal(
            folder,
            cluster.address,
            *application.settings,
            f"scale.num_workers={workers}",
            "data.global_batch_size=16",
            config=application.config,
        )
    if not done.result["reached_target"]:
        raise SystemExit(
            f"jobs/configs/{application.config}.yaml did not reach {application.target}: {done.result}"
        )
    first_s, reached_s = min(done.step_ends_s.values()), max(done.evaluation_ends_s.values())
    progress(
        f"{application.config}: {workers} workers, {max(done.step_ends_s)} steps, {reached_s - first_s:.1f} s"
    )
    return Timing(reached_s - first_s, first_s, reached_s)


def measure(repeat: int) -> Report:
    quiet = Quiet()
    rows: list[Row] = []
    figures: list[Figure] = []
    for name, application in APPLICATIONS.items():
        with scratch() as folder:
            contestants = {
                "plain loop": partial(plain_loop, application, folder),
                "Shoal, 1 worker": partial(shoal, application, 1, folder),
                "Shoal, 2 workers": partial(shoal, application, 2, folder),
            }
            seconds: dict[str, list[float]] = {one: [] for one in contestants}
            for number in range(repeat):
                for one in contestants if number % 2 == 0 else reversed(contestants):
                    seconds[one].append(quiet.value(contestants[one]))
        rows += [Row(f"{name}: {one}", values, "s") for one, values in seconds.items()]
        one_worker = seconds["Shoal, 1 worker"]
        against = Row(f"{name}: against a plain loop", ratios(one_worker, seconds["plain loop"]), "x")
        faster = Row(f"{name}: 2 workers against 1", ratios(one_worker, seconds["Shoal, 2 workers"]), "x")
        rows += [against, faster]
        figures.append(Figure(f"{against.name}, seconds", against.median, 1.1, is_at_least=False))
        figures.append(Figure(f"{faster.name}, speed", faster.median, 1.6, is_at_least=True))
    return Report("Speech recognition and object detection", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure, repeat=2)
