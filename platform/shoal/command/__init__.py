"""The command `shoal`: a file for each subcommand, with its arguments. `jobs/*.py` call the same functions.

- `main`: finds the subcommand
- `train`, `tune`, `evaluate`, `predict`, `promote`, `export`, `compress`, `explain`, `serve`, `transfer`,
  `coordinate_check`, `sync`, `doctor`, `reap`: the jobs; `model_job`: what those have in common that take a model and
  keys alone
- `check`, `plan`: what `train --check` and `train --plan` do
- `ui`: MLflow on the store of the runs
- `init`: a config and a model to begin with; `templates`: their text
- `runs`, `show`: run folders, and what to do next with them; `run_table`: what is known of each
- `completion`: for bash and zsh

Depends on `shoal.api` and all below it; nothing depends on it.
"""
