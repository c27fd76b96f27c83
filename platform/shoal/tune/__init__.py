"""Sweeps, without Ray and MLflow.

- `config`, `validate`: the config of a sweep and its checks before anything starts
- `keys`: what a key may be swept over, and which keys cannot be swept
- `space`: ranges of keys, and points of them
- `search`: where points come from; `engine`: which trial is next, when its report is decided on
- `schedulers`: which trials are stopped early
- `trials`: trials as rows: ranking, mean over seeds, table
- `analysis`: widths, scaling law, muP transfer, coordinate check, importance
- `report`: tables, pictures, one HTML page

Depends on `runs`; independent of Ray.
"""
