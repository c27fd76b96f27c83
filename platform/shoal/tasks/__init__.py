"""What is learnt: the loss of a batch, and the sums over samples from which metrics are computed.

- `base`: what the loop asks of a task, and what a task declares of its data
- `classification`, `multilabel_classification`, `regression`, `custom`, `language`, `sequence_classification`,
  `image_classification`, `speech_recognition`: one per file
- `registry`: a task by its name
- `objective`: what is minimized and measured besides, as the config says; `own_loss`: a loss of the user's
- `measures`: metrics of the user's and of `torch_metrics`; `accumulator`: all that evaluation adds up
- `outputs`: the tensor that a task reads of what a model returns
- `metrics`: which way a metric is better
- `transcripts`: texts from the outputs of a CTC model, and their errors
- `object_detection`: boxes; `boxes`: what they are in a detector's outputs; `average_precision`: how good
- `libraries`: that some tasks alone need
- `float64`: outputs and rows where it is
- `content_hash`: random numbers that are a function of a row
- `open_data`: the source of a config, as its task needs it

To add one: a module with a subclass of `base.Task`, and a line in `registry.TASKS`. Depends on `data`; independent of
models and of the loop.
"""
