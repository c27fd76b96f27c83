"""A sweep from its plan to its result.

- `sweep`: the workflow: opens what a sweep needs, runs the loop, finishes
- `loop`: THE LOOP: the engine's decisions go to the actors, the actors' events to the engine
- `state`: what is known of all trials; `trial_progress`: of one
- `trial_lifecycle`: how a trial is opened, replayed, started and closed
- `trial_events`: how each event of a trial's process is handled
- `trial_history`: what an earlier attempt left of a trial
- `stopping`: how a trial is stopped
- `retention`: which trials keep their checkpoints
- `exploit`: a trial goes on from another's checkpoint (population based training)
- `result`: the best model and `result.json`
- `mlflow_metadata`: what MLflow receives of a sweep besides metrics
- `forecast`, `probe`: what a sweep would cost
"""
