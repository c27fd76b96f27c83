"""The peer of `many_workers.py`: Ray Train at its defaults, with workers that note that they are there, and wait."""

import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

STEP_S = 0.5


def idle(config: dict[str, Any]) -> None:
    """Note the time of each step; the start is known by the lines that are there."""
    file = Path(config["times"]) / str(ray.train.get_context().get_world_rank())
    start = 1 if file.exists() else 0
    with file.open("a") as out:
        for step in range(1, 1_000_000):
            time.sleep(STEP_S)
            out.write(f"{start} {step} {time.time()}\n")
            out.flush()


def main() -> None:
    workers, times = int(sys.argv[1]), sys.argv[2]
    ray.init()
    DataParallelTrainer(
        idle,
        train_loop_config={"times": times},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(
            name="idle", storage_path=f"{times}-ray", failure_config=ray.train.FailureConfig(max_failures=1)
        ),
    ).fit()


if __name__ == "__main__":
    main()
