"""Pictures as PNG bytes, and tables in Markdown.

- `figure`: figures without a screen, and PNG bytes of them
- `markdown`: tables in Markdown
- `loss_curve`, `confusion_matrix`, `data_report`, `trade_off`: the pictures of a run, each as a figure or as PNG bytes

Depends on matplotlib, which is imported when a picture is drawn. The pictures of a sweep are in `shoal.tune`.
"""
