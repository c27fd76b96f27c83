"""A trained model in use.

- `predictor`: raw rows in, labels out, with the transform that it was trained with
- `generation`: text out of a language model

Depends on `data`, `models` and `tasks`; independent of training, Ray and MLflow.
"""
