"""Evaluate a model: python jobs/evaluate.py MODEL [data.source=...]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal evaluate` does."""
    from shoal.command import evaluate  # an interrupt meanwhile is one line, too

    return evaluate.main(arguments, "python jobs/evaluate.py")


if __name__ == "__main__":
    leave(run(main))
