"""Predict rows in bulk: python jobs/predict.py MODEL INPUT OUTPUT [key=value ...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal predict` does."""
    from shoal.command import predict  # an interrupt meanwhile is one line, too

    return predict.main(arguments, "python jobs/predict.py")


if __name__ == "__main__":
    leave(run(main))
