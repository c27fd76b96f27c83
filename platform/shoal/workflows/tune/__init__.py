"""A sweep from its plan to its result.

- `sweep`: the driver: carries out what the engine decides
- `trial_progress`, `trial_history`: what is known of a trial, and what an earlier attempt left of it
- `exploit`: a trial goes on from another's checkpoint (population based training)
- `mlflow_metadata`: what MLflow is told of a sweep
- `forecast`, `probe`: what a sweep would cost
"""
