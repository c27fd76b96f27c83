"""Make a version of a registered model its champion: python jobs/promote.py NAME [--candidate VERSION] [--rollback]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal promote` does."""
    from shoal.command import promote  # an interrupt meanwhile is one line, too

    return promote.main(arguments, "python jobs/promote.py")


if __name__ == "__main__":
    leave(run(main))
