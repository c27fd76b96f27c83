"""Sweeps, without Ray and MLflow.

- `config`, `validate`: the config of a sweep and its checks
- `space`: ranges of keys, and points of them
- `search`: where points come from; `engine`: which trial is next, when a report is judged
- `trials`: trials as rows
- `analysis`: widths, scaling law, muP transfer, coordinate check, importance
- `report`: tables, pictures, one HTML page

Depends on `runs`; independent of Ray.
"""
