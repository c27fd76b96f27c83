"""The search space of a sweep as plain data: a point is a set of `{dotted.key: value}` overrides of a config.

- `values`: the values that a config may have, read and written
- `domains`: the ranges; `parsing`: their text
- `sampling`: points of a space: drawn, all of a grid, the extreme ones
"""
