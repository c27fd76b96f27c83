"""Explain a model: python jobs/explain.py MODEL [explain.rows=3,17] [explain.target=CLASS]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal explain` does."""
    from shoal.command import explain  # an interrupt meanwhile is one line, too

    return explain.main(arguments, "python jobs/explain.py")


if __name__ == "__main__":
    leave(run(main))
