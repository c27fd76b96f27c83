"""The report of a sweep in its folder: `write` decides what is in it, `plots` draws, `html` fills the page.

`report.html.j2` is the page's template, and `text` writes params as text. Depends only on rows of trials and on
analyses of them.
"""
