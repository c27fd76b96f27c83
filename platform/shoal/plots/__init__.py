"""Pictures as PNG bytes, tables in Markdown, and templates of HTML pages.

- `figure`: figures without a screen, and PNG bytes of them
- `markdown`: tables in Markdown; `html`: pages from templates
- `loss_curve`, `confusion_matrix`, `detection`, `data_report`, `trade_off`, `spectrograms`, `goodput`: the pictures of
  a run, each as a figure or as PNG bytes

Depends on matplotlib and jinja2, which are imported when a picture or a page is made. The pictures of a
sweep are in `shoal.tune`.
"""
