"""Checkpoints: complete or absent, written in the background, the last few and the best kept.

- `contents`: what a checkpoint holds
- `store`: its files in a run folder
- `background`: writing them while training goes on
- `restore`: back into a model and its optimiser
"""
