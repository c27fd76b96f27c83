"""Completion of this command in a shell: eval "$(shoal completion bash)", or zsh

The script that is printed holds all subcommands, keys and configs; nothing is started while one types.
"""

from pydantic import BaseModel

from shoal.command.main import COMMANDS
from shoal.compression.config import CompressConfig
from shoal.config.loading import shipped_configs
from shoal.config.schema import fields
from shoal.runs.config import RunConfig
from shoal.terminal.arguments import JobParser
from shoal.tune.config import SweepConfig
from shoal.workflows.coordinate_check import CoordinateConfig
from shoal.workflows.evaluate import EvaluateConfig
from shoal.workflows.explain import ExplainConfig
from shoal.workflows.export import ExportConfig
from shoal.workflows.promote import PromoteConfig
from shoal.workflows.transfer import TransferConfig

SCHEMAS: dict[str, type[BaseModel]] = {
    "train": RunConfig,
    "check": RunConfig,
    "plan": RunConfig,
    "doctor": RunConfig,
    "tune": SweepConfig,
    "transfer": TransferConfig,
    "coordinate-check": CoordinateConfig,
    "evaluate": EvaluateConfig,
    "promote": PromoteConfig,
    "export": ExportConfig,
    "compress": CompressConfig,
    "explain": ExplainConfig,
}
OF_MODEL = ("evaluate", "promote", "export", "compress", "explain")  # which take a model instead of a config
OPTIONS = {"train": "--check --plan --mfu", "plan": "--mfu", "transfer": "--to --verify", "runs": "--all --experiment",
           "ui": "--port", "promote": "--candidate --rollback --dry-run"}  # fmt: skip

BASH = """\
_shoal() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words="" sections=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    if [ "$before" = --help ]; then
        COMPREPLY=($(compgen -W "$sections" -- "$word"))
        return
    fi
    COMPREPLY=($(compgen -W "--help $words" -- "$word") $(compgen -f -X '!*.y*ml' -- "$word") $(compgen -d -- "$word"))
    case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2> /dev/null ;; esac
}}
complete -F _shoal shoal
"""

CASE = """\
        {name})
            words="{words}"
            sections="{sections}" ;;"""

# zsh runs bash's function through its own emulation.
ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def main(arguments: list[str]) -> int:
    """Print the script for a shell."""
    parser = JobParser(
        "shoal completion bash|zsh",
        'Print a script that completes this command: put eval "$(shoal completion bash)" into ~/.bashrc, or the same '
        "with zsh into ~/.zshrc.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(arguments).shell
    print((ZSH if shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """Return the function of bash."""
    cases = "\n".join(
        CASE.format(name=name, words=" ".join(_words(name)), sections=" ".join(_sections(name)))
        for name in COMMANDS
    )
    return BASH.format(commands=" ".join(COMMANDS), cases=cases)


def _words(name: str) -> list[str]:
    if name == "completion":
        return ["bash", "zsh"]
    keys = [f"{key}=" for key, _ in fields(SCHEMAS[name])] if name in SCHEMAS else []
    configs = list(shipped_configs()) if name in SCHEMAS and name not in OF_MODEL else []
    return [*OPTIONS.get(name, "").split(), *configs, *keys]


def _sections(name: str) -> list[str]:
    if name not in SCHEMAS:
        return []
    return list(dict.fromkeys(key.partition(".")[0] for key, _ in fields(SCHEMAS[name]) if "." in key))
