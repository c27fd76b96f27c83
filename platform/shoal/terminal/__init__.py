"""Everything a person sees in a terminal. Only jobs call it.

- `errors`: one `error:` line, warnings, interrupts, exit codes
- `arguments`: options, a config file and settings, and answers to mistyped ones
- `progress`, `live`: a training or a sweep while it lasts, and the redrawn region of a terminal
- `transcript`: what a job printed, kept in its run folder
- `stages`: several of them, one after another
- `reports`, `estimate_report`, `forecast_report`, `compression_report`, `doctor_report`, `tables`: text that is printed
  at the end

Depends on what the workflows return; nothing depends on it. rich is imported in `live` alone.
"""
