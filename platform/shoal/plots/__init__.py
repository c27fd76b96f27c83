"""Pictures as PNG bytes.

- `figure`: what all pictures share
- `loss_curve`, `confusion_matrix`: those of a run

Depends on matplotlib, which is imported when one is drawn; the pictures of a sweep are in `shoal.tune`.
"""
