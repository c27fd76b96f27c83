"""The functions that `shoal` itself offers, for scripts and notebooks; the command and the jobs call them too.

- `config`: a config from a path, a mapping and keywords; `objects`: the user's own objects in it
- `train`, `tune`, `evaluate`: a job each, from its config to its result
- `space`: ranges for `tune`
- `models`: a trained model in use
- `results`, `html`: what is returned, and how a notebook shows it

Depends on all packages below it; only `shoal.command` depends on it.
"""
