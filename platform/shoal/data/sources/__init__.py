"""One reader per kind of `data.source`; `open` picks it by the scheme.

To add one: a module with a function that returns a `base.Source`, and its scheme in `base` and `open`. Independent of
what a row means: splits, labels and the transform are `shoal.data.dataset_info`'s.
"""
