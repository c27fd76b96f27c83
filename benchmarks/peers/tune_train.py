"""The peer of `sweep.py`: Ray Train V2 within Ray Tune, as Ray's guide "Hyperparameter tuning with Ray Tune" has it.

Each trial is a driver function that builds and fits a `TorchTrainer` of one worker, whose reports a
`TuneReportCallback` hands to Tune; the worker loads its own data. Two trials at once: each worker takes one of the
two CPUs, so the drivers must take none, or they keep the workers from starting. The guide's advice for that is
a resource of their own, and `max_concurrent_trials` by what the workers need.
"""

import tempfile
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from sweep_workload import Point, load_digits, parser, points, train, write

CPUS, WORKERS_PER_TRIAL = 2, 1
DRIVER_RESOURCE = "train_driver"


def train_worker(config: dict[str, Any]) -> None:
    train(Point(**config["point"]), config["epochs"], load_digits(), ray.train.report)


def drive(config: dict[str, Any], storage_path: str) -> None:
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config["train_loop_config"],
        scaling_config=ray.train.ScalingConfig(num_workers=WORKERS_PER_TRIAL),
        run_config=ray.train.RunConfig(
            name=f"train-trial_id={tune.get_context().get_trial_id()}",
            storage_path=storage_path,
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def main() -> None:
    given = parser().parse_args()
    ray.init("local", num_cpus=CPUS, include_dashboard=False, resources={DRIVER_RESOURCE: 1})
    wanted = points(given.trials)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(partial(drive, storage_path=folder), {DRIVER_RESOURCE: 0.01}),
            param_space={
                "train_loop_config": {
                    "point": tune.grid_search([vars(point) for point in wanted]),
                    "epochs": given.epochs * given.repeat_epochs,
                }
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=CPUS // WORKERS_PER_TRIAL),
            run_config=tune.RunConfig(storage_path=folder),
        )
        results = tuner.fit()
        configs = [(one, one.config["train_loop_config"]) for one in results]
        write(
            given.out,
            {Point(**config["point"]).key: one.metrics["val_loss"] for one, config in configs},
        )


if __name__ == "__main__":
    main()
