"""The peer of `sweep.py`: Optuna in one process, one trial after another, on a grid.

Its studies are in memory and nothing is pruned: what is left is the training itself. Each trial's own seconds
are written too, as `trial_s`: the pure training that the others' overhead is counted from.
"""

import time
from dataclasses import asdict

import optuna
from sweep_workload import Point, load_digits, parser, points, train, write


def main() -> None:
    arguments = parser()
    arguments.add_argument("--fused", action="store_true", help="Adam in one kernel: tuned by hand")
    given = arguments.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = load_digits()
    wanted = {point.key: point for point in points(given.trials)}
    spent_s: dict[str, float] = {}

    def objective(trial: optuna.Trial) -> float:
        since_s = time.perf_counter()
        width = trial.suggest_int("width", 1, 1024)
        point = Point(width, trial.suggest_float("lr", 1e-6, 1.0, log=True))
        reported: list[float] = []

        def report(metrics: dict[str, float]) -> None:
            reported.append(metrics["val_loss"])
            trial.report(reported[-1], len(reported))

        train(point, given.epochs * given.repeat_epochs, data, report, given.fused)
        spent_s[point.key] = time.perf_counter() - since_s
        return reported[-1]

    study = optuna.create_study(direction="minimize")
    for point in wanted.values():
        study.enqueue_trial(asdict(point))
    study.optimize(objective, n_trials=given.trials)
    losses = [trial.value for trial in study.trials]
    write(given.out, dict(zip(wanted, losses, strict=True)), trial_s=spent_s)


if __name__ == "__main__":
    main()
