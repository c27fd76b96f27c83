"""The training loop and its parts. None of them knows Ray or MLflow.

- `loop`: THE LOOP: forward, backward, clip, update
- `assemble`: a config becomes a ready loop, in one place; `resume`: where it starts from
- `optimizer`, `optimizer_state`, `lr_schedule`, `evaluation`
- `early_stopping`: ends it; `user_callbacks`: a user's own code at named moments
- `accumulation`, `activation_checkpointing`, `mixed_precision`, `ema`, `compile`: techniques, one per file
- `checkpoint`: what is saved, how, and how it is loaded
- `counted`: batches that know what their loss is divided by
- `dependence`: what makes the result depend on the number of workers; `divergence`: a loss that is not finite
- `device_memory`, `clock`, `throughput`, `profiler`: what a step takes

Depends on `data`, `models`, `tasks` and `distributed`.
"""
