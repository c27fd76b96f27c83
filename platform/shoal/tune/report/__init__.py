"""The report of a sweep in its folder: `write` decides what is in it, `plots` draws, `html` is the page."""
