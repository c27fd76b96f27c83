"""Learning-rate schedules: pure functions of the step, of Shoal's or of a user's own."""

import math
from collections.abc import Callable
from typing import Any

from shoal.config.import_path import find, is_path
from shoal.errors import ConfigError
from shoal.training.optimizer import OptimConfig

# Warmup-stable-decay spends the last fifth of the steps on the decay (Hu et al. 2024, MiniCPM, use 10 to 20%).
WSD_DECAY_SHARE = 0.2


CHECKED_STEPS = 1000


def make_schedule(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the optimizer step, from 0.

    Raises:
        UserError: a user's own schedule does not import.
    """
    if not is_path(config.schedule):
        return lambda step: learning_rate(config, step, total_steps)
    function = find(config.schedule, "optim.schedule")
    return lambda step: config.lr * _factor(function, config.schedule, step, total_steps)


def check_schedule(config: OptimConfig, total_steps: int) -> None:
    """Ask a user's own schedule for the rates of up to 1000 steps.

    Raises:
        UserError: it does not import, raises, or returns something else than a number of 0 or more.
    """
    if is_path(config.schedule):
        rate = make_schedule(config, total_steps)
        for step in range(0, total_steps, max(1, total_steps // CHECKED_STEPS)):
            rate(step)
        rate(total_steps - 1)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `total_steps`, by one of Shoal's schedules."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    match config.schedule:
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case "wsd":
            share = min(1.0, (1.0 - done) / WSD_DECAY_SHARE)
        case _:
            share = 1.0
    return config.lr * share


def _factor(function: Callable[..., Any], path: str, step: int, total_steps: int) -> float:
    """Call a user's own schedule.

    Raises:
        ConfigError: it raises, or returns something else than a number of 0 or more.
    """
    try:
        found = function(step, total_steps)
        factor = float(found)
    except Exception as error:
        raise ConfigError(
            f"optim.schedule='{path}' raised {type(error).__name__} at step {step} of {total_steps}: {error}: it is "
            "called with (step, total_steps) and returns a factor of optim.lr"
        ) from error
    if not 0.0 <= factor < math.inf:
        raise ConfigError(
            f"optim.schedule='{path}' returned {found} at step {step} of {total_steps}: return a finite factor of "
            "optim.lr, 0 or more"
        )
    return factor
