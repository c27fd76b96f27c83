"""The command `shoal SUBCOMMAND ...`: imports the subcommand alone, so that `shoal --help` is quick."""

import importlib

from shoal.errors import UserError, nearest
from shoal.terminal.errors import leave, run
from shoal.version import VERSION

# By name: the module of `shoal.command`, and what it does.
COMMANDS = {
    "train": ("train", "train a model"),
    "tune": ("tune", "sweep over ranges of a config, and keep the best model"),
    "evaluate": ("evaluate", "measure a trained model on rows it was not trained on"),
    "predict": ("predict", "predict all rows of a source, and write them to files"),
    "serve": ("serve", "answer predictions of trained models over HTTP"),
    "promote": ("promote", "make a version of a registered model its champion, if it is as good"),
    "export": ("export", "write a trained model as ONNX, torch.export or safetensors"),
    "compress": ("compress", "prune, quantize or distil a trained model, and measure what it costs"),
    "explain": ("explain", "show which columns, pixels or tokens a model answers by"),
    "transfer": ("transfer", "tune a narrow model, train a wide one (muP)"),
    "coordinate-check": ("coordinate_check", "check that activations move equally at all widths"),
    "check": ("check", "check config, data and model, and train nothing"),
    "plan": ("plan", "estimate memory and time, on any hardware"),
    "init": ("init", "write a config, a model and data to begin with"),
    "runs": ("runs", "list runs, and what to do next with unfinished ones"),
    "show": ("show", "print one run"),
    "ui": ("ui", "open MLflow on the runs"),
    "doctor": ("doctor", "check a cluster before a training is started on it"),
    "reap": ("reap", "close runs whose process is gone"),
    "sync": ("sync", "send a run folder to MLflow, completely"),
    "completion": ("completion", "print a script that completes this command in bash or zsh"),
}

HELP = """usage: shoal COMMAND [CONFIG.yaml] [dotted.key=value ...]

{commands}

shoal COMMAND --help            the arguments of a command and all keys of its config
shoal COMMAND --help SECTION    the keys of one section, e.g. shoal train --help optim
shoal --version
"""


def main(arguments: list[str]) -> int:
    """Call the subcommand that the first argument names.

    Raises:
        UserError: there is no such subcommand.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(
            HELP.format(commands="\n".join(f"  {name:<18}{text}" for name, (_, text) in COMMANDS.items())),
            end="",
        )
        return 0
    if name in ("-V", "--version", "version"):
        print(f"shoal {VERSION}")
        return 0
    known = {**{name.replace("-", "_"): name for name in COMMANDS}, **{name: name for name in COMMANDS}}
    if name not in known:
        raise UserError(
            f"shoal has no command '{name}'{nearest(name, COMMANDS)}: the commands are {', '.join(COMMANDS)}"
        )
    module = importlib.import_module(f"shoal.command.{COMMANDS[known[name]][0]}")
    return int(module.main(rest))


def program() -> None:
    """Run the command with the arguments of this process, and end it; the entry point of the package."""
    leave(run(main))
