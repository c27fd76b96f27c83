"""The life of a run, without Ray.

- `config`: the whole config of a run; `locations`: the absolute paths that it names
- `resolve`: which run folder: new, continued or refused
- `validate`, `machine`: what is checked before anything is started
- `probe`: what a run does, done once on a few rows; `probe_objective`: its loss and metrics;
  `row_counts`: rows that a worker computes on at a time
- `lifecycle`: lease, watchdog and tracker of one attempt; `heartbeat`: its lease is renewed
- `worker`: one worker's training, from its spec to the outcome; `callbacks`: what it attaches to the loop;
  `resident`: its rows, kept in memory; `selection`: which weights are its result
- `hang`: whether workers still move; `pace`: which of them is slow; `failure_policy`: what follows when they fail
- `timeline`: what a run did when, as marks in its folder; `goodput`: what its seconds went to
- `data_notes`: what a person should know of the data, before training and as a report
- `mlflow_metadata`: what MLflow receives besides metrics
- `finalize`: the model packaged and verified, pictures; `transcripts`: what a model of speech hears
- `job_result`: what other jobs keep as a run

Depends on all packages below it; independent of Ray and of sweeps.
"""
