"""What follows from the trials of a sweep: one question per file.

- `width`: whether the best learning rate moves with the width
- `scaling_law`: how the loss falls with size
- `mup_transfer`: what tuning narrow saves
- `coordinate_check`: whether activations change by the same amount at every width
- `importance`: which key the metric depends on
"""
