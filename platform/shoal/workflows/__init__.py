"""The order of things, one file per job: validated config in, result out.

`train`, `tune/`, `transfer`, `coordinate_check`, `evaluate`, `predict`, `promote`, `export`, `compress`, `explain`,
`serve`, `estimate`, `doctor`, `reap`; `compression_runs` records what a compression found.
Depends on all packages but `terminal`.
"""
