"""A trained model in use.

- `predictor`: raw rows in, labels out, with the transform that it was trained with
- `rows`: what callers pass as rows, to columns and back
- `artifact_code`: the code that a saved model names, and who may run it
- `evaluation`: the task's sums over the rows of a split
- `generation`: text from a language model

Depends on `data`, `models` and `tasks`; independent of training, Ray and MLflow.
"""
