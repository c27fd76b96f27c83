"""Everything a person sees in a terminal. Only jobs call it.

- `errors`: one `error:` line, warnings, interrupts, exit codes
- `progress`: a run or a sweep while it lasts
- `tables`, `reports`, `estimate_report`, `forecast_report`: what is printed at the end

Depends on what the workflows return; nothing depends on it.
"""
