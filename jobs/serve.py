"""Serve trained models over HTTP: python jobs/serve.py MODEL [MODEL ...] [serve.port=8000]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal serve` does."""
    from shoal.command import serve  # an interrupt meanwhile is one line, too

    return serve.main(arguments, "python jobs/serve.py")


if __name__ == "__main__":
    leave(run(main))
