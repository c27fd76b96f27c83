"""One reader per kind of `data.source`; `open` chooses it by the scheme.

- `base`: what every reader returns
- `files`: files of rows, listed and divided among splits; each kind has its reader: `csv_files` (`csv_dialect`,
  `csv_header` and `encoding` find how a file is written, `csv_types` the types of its columns), `parquet_files`,
  `json_files`, `npz_files`
- `opening`, `tables`: what these share: archives and compressions, nested values and partitions
- `sklearn`, `synthetic`, `huggingface`, `images`, `function`: rows
- `forms`, `items`, `stream`, `values`: for `function`, what users return: by form, item by item, one after the other,
  value by value
- `boxes`: images with boxes of objects, as `annotated` by the readers `coco`, `voc`, `yolo` and `objects_column`;
  `synthetic_boxes` makes some
- `text`, `text_column`: rows of tokens, by `corpus`
- `speech`: rows of recordings; `recordings`: these with their texts, of files (`audio`, found by
  `recording_files`, decoded by `encoded_audio`), of columns, of a synthesiser (`spoken_digits`), or strung together
  (`strings`)
- `image_column`: encoded images among rows become pixels
- `arrow`: Arrow tables and pandas columns become arrays

To add one: a module with a function that returns a `base.Source`, and a line in `open.READERS`. Independent of the
meaning of a row: splits, labels and the transform belong to `shoal.data.dataset_info`.
"""
