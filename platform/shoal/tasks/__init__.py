"""What is learnt: the loss of a batch, and the sums over samples from which metrics are made.

- `base`: what the loop asks of a task, and the names of all
- `classification`, `regression`, `language`, `image_classification`: one per file
- `registry`: a task by its name
- `metrics`: which way a metric is better
- `content_hash`: random numbers that are a function of a row
- `open_data`: what the `data` section means to a task

To add one: a module with a class as `base.Task`, its name and metrics in `base`, a case in `registry`. Depends on
`data`; independent of models and of the loop.
"""
