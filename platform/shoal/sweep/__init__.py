"""Sweeps, without Ray and MLflow: points, trials, and what is reported of them."""
