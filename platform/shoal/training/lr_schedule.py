"""Learning-rate schedules: pure functions of the step."""

import math

from shoal.training.optimizer import OptimConfig

# Warmup-stable-decay spends the last fifth of the steps on the decay (Hu et al. 2024, MiniCPM, use 10 to 20%).
WSD_DECAY_SHARE = 0.2


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case "wsd":
            share = min(1.0, (1.0 - done) / WSD_DECAY_SHARE)
    return config.lr * share
