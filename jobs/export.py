"""Export a model: python jobs/export.py MODEL [export.formats=onnx,torch_export,safetensors]"""

import _path  # noqa: F401  (first: it finds shoal)
from shoal.terminal.errors import leave, run


def main(arguments: list[str]) -> int:
    """Do what `shoal export` does."""
    from shoal.command import export  # an interrupt meanwhile is one line, too

    return export.main(arguments, "python jobs/export.py")


if __name__ == "__main__":
    leave(run(main))
