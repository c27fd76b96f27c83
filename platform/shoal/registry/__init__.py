"""Models in MLflow.

- `client`: the MLflow client, which `tracking` uses too
- `preflight`: whether a tracking URI works, before anything is started
- `sqlite_store`: the SQLite file of a store, made whole or not at all
- `package`: a model saved as a pyfunc model, without pickle
- `publish`: logged, registered
- `champion`: which version is the champion, at the end of a training; `versions`: what a promotion asks of MLflow
- `compare`: two versions on the same rows; `measure`: one of them, in a process of its own; `slices`, `significance`
- `model_card`: what the records say of a model, as Markdown, HTML and for the Hugging Face hub
- `ledger`: who became champion, instead of whom and why
- `verify`: loaded in a clean process, it must measure the same
- `model_uri`: a run folder, `runs:/ID` or `models:/NAME@ALIAS` becomes a folder to load

Only this package and `tracking` import MLflow. Independent of Ray and of how runs are made.
"""
