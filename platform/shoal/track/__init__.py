"""Tracking: metrics go to a journal in the run folder; MLflow is brought level with it, now or later."""
