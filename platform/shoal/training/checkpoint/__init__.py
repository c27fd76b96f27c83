"""Checkpoints: complete or absent, written in the background, the last few and the best kept.

- `contents`: what a checkpoint holds; `plain`: what of a user's own state it can hold
- `files`: the files of one, read and checked
- `store`: those of a run folder
- `background`: writing them while training goes on; `interval`: how often, and what failures cost
- `agreement`: whether all workers have the weights that one of them writes
- `restore`: back into a model and its optimizer
"""
