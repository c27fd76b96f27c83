"""A trained model in use.

- `predictor`: raw rows in, labels out, with the transform that it was trained with
- `rows`: what callers pass as rows, to columns and back; `recordings`: of encoded recordings
- `description`: what a saved model says of itself
- `onnx_module`: a model that ONNX Runtime computes
- `artifact`: the formats and the manifest of its files; `golden`: rows that it must answer as when it was saved
- `artifact_code`: the code that a saved model names, and who may run it
- `evaluation`: the task's sums over the rows of a split; `held_out`: opens the rows that a model is looked at on
- `batch`: many rows of a source predicted, without Ray; `batch_input`, `batch_output`: where they come from and go to
- `generation`: text from a language model; `detection`: boxes in images, `detection_pictures`: drawn

Depends on `data`, `models`, `tasks` and `plots`; independent of training, Ray and MLflow.
"""
