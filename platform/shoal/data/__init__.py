"""From a `data.source` to the batches of a worker.

- `config`: the `data` section; `read_options`: the part of it that says how files are read
- `sources`: readers of rows, one per file
- `sampler`: which split a row is in, and the order in which training rows are seen
- `dataset_info`: the checks of all rows, and the fitted transform
- `preprocessing`: raw columns to tensors, and back from outputs to labels; `preprocessing_spec`: what determines it
- `cells`: texts that are numbers or dates; `values`: values of a column as numbers, texts, classes
- `statistics`, `moments`, `sketch`, `array_stats`: what blocks tell of a column; `summary`: of all, and of the label
- `schema`: what a column is understood as
- `misfits`: cells of other data that a fitted transform cannot use
- `glance`: leaks and odd columns, found by a bounded look; `report`: all that is known of the data, as Markdown
- `partition`: rows divided among workers; `redraw`: those that hold random numbers, read again in every epoch
- `loader`: a worker's rows, batch by batch; `widen`: rows kept in their own type, as the model takes them
- `labels`: the label to targets, and back; `weights`: of samples, stored behind their targets
- `how_far`: what is said of reading that takes long
- `tree`: inputs and targets of several tensors; `template`: which columns they are; `packing`: one row of bytes of them
- `random_state`: what a user's own code draws from, seeded for a while
- `text`, `tokenizer`, `chat`, `images`, `boxes`, `augment`: for rows of text and images
- `audio`, `units`, `spec_augment`, `formants`: for recordings: spectrograms, what texts are made of, blanks in
  training, a synthesiser

Depends on `config` and `errors`; independent of models, of torch.distributed and of Ray.
"""
