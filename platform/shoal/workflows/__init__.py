"""The order of things, one file per job: validated config in, result out.

`train`, `tune/`, `transfer`, `coordinate_check`, `evaluate`, `predict`, `promote`, `export`, `explain`, `serve`,
`estimate`.
Depends on all packages but `terminal`.
"""
