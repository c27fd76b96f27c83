"""Data: a source becomes blocks of rows, a fitted transform makes them tensors, shards serve them in order."""
