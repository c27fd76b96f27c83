"""The loader of models that were saved before `shoal.inference` was there: their MLmodel names this module."""

from shoal.inference.predictor import _load_pyfunc

__all__ = ["_load_pyfunc"]
