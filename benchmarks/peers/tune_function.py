"""The peer of `sweep.py`: Ray Tune alone, a function trainable on one CPU, the data by `with_parameters`.

Tune at its defaults: a new actor for each trial, which `--reuse-actors` changes. Results go where Tune keeps
them, into a folder that is gone afterwards.
"""

import tempfile
from typing import Any

import ray
from ray import tune
from sweep_workload import Digits, Point, load_digits, parser, points, train, write


def trial(config: dict[str, Any], data: Digits) -> None:
    train(Point(**config["point"]), config["epochs"], data, tune.report)


def main() -> None:
    arguments = parser()
    arguments.add_argument("--reuse-actors", action="store_true")
    given = arguments.parse_args()

    ray.init("local", num_cpus=2, include_dashboard=False)
    wanted = points(given.trials)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_parameters(trial, data=load_digits()),
            param_space={
                "point": tune.grid_search([vars(point) for point in wanted]),
                "epochs": given.epochs * given.repeat_epochs,
            },
            tune_config=tune.TuneConfig(reuse_actors=given.reuse_actors),
            run_config=tune.RunConfig(storage_path=folder),
        )
        results = tuner.fit()
        found = {Point(**one.config["point"]).key: one.metrics["val_loss"] for one in results}
        write(given.out, found)


if __name__ == "__main__":
    main()
