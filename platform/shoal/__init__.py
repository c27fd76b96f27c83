"""Shoal trains and tunes PyTorch models on a Ray cluster, with every run recorded in MLflow.

Importing the package loads neither torch nor ray nor mlflow; import the module you need.
"""

__version__ = "0.1.0"
