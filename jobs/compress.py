"""Prune or quantize a model: python jobs/compress.py MODEL compress.prune=0.5 [compress.quantize=int8]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal compress` does."""
    from shoal.command import compress  # an interrupt meanwhile is one line, too

    return compress.main(arguments, "python jobs/compress.py")


if __name__ == "__main__":
    leave(run(main))
