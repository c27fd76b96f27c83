"""Metrics go to a journal in the run folder; MLflow is kept in sync with the folder, now or later.

- `config`: the `track` section
- `journal`: the metric log, written before MLflow receives anything
- `status`: how far a training is, for whoever shows it
- `sync`, `sweep_sync`: a run folder to MLflow; a second time changes nothing
- `cockpit`: names, descriptions and the runs table, as MLflow's pages show them
- `entities`: the experiment, the one run of a key, a data set, as MLflow has them
- `background`: syncing while a run lasts, in a thread or a process
- `watchdog`: a process that closes the run in MLflow if the driver dies
- `reaper`: closes runs whose process is gone
- `store_probe`: whether MLflow takes a run
- `system_metrics`: CPU, memory and GPU while training

Depends on `storage` and `registry`; independent of training and Ray.
"""
