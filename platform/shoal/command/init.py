"""Write a config, a model and data to begin with: shoal init [FOLDER]"""

import re
from pathlib import Path

from shoal.command import templates
from shoal.errors import UserError
from shoal.terminal.arguments import JobParser


def main(arguments: list[str]) -> int:
    """Write files that train as they are; none that is there is overwritten.

    Raises:
        UserError: one of the files exists.
    """
    parser = JobParser(
        "shoal init [FOLDER]", "Write a config, a model and data to begin with; they train as they are."
    )
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="default: the working directory"
    )
    folder = Path(parser.parse_args(arguments).folder)
    name = re.sub(r"\W+", "-", folder.resolve().name).strip("-") or "first"
    files = {
        "config.yaml": templates.CONFIG.format(name=name),
        "my_model.py": templates.MODEL,
        "my_data.py": templates.DATA,
    }
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise UserError(
            f"'{folder / there[0]}' exists, and is not overwritten: choose another folder, or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
        print(f"wrote {folder / file}")
    where = "" if folder == Path(".") else f"cd {folder} && "
    print(f"train it: {where}shoal train config.yaml")
    return 0
