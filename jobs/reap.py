"""Close runs whose process is gone, in their folders and in MLflow: python jobs/reap.py STORE"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal reap` does."""
    from shoal.command import reap  # an interrupt meanwhile is one line, too

    return reap.main(arguments, "python jobs/reap.py")


if __name__ == "__main__":
    leave(run(main))
