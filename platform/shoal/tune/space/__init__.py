"""The search space of a sweep as plain data: a point is a set of `{dotted.key: value}` overrides of a config.

- `domains`: ranges of keys; `parsing`: as they are written; `sampling`: points of them
"""
