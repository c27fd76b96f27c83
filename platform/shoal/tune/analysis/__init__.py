"""What the trials of a sweep say: one question per file.

- `width`: whether the best learning rate moves with the width
- `scaling_law`: how the loss falls with size
- `mup_transfer`: what tuning narrow saves
- `coordinate_check`: whether activations move alike at every width
- `importance`: which key mattered
"""
