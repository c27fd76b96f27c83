"""The command `shoal`: its help, its answers, what it writes and lists, its completion. Nothing is trained."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.command import completion, init, main, run_table, runs, show
from shoal.config.loading import load, shipped_configs
from shoal.errors import ConfigError, UserError
from shoal.runs.config import RunConfig
from shoal.storage.records import Environment, Identity, Metadata, TrainResult
from shoal.storage.run_folder import RunFolder
from shoal.version import VERSION

PLATFORM = Path(run_table.__file__).resolve().parents[2]


def shoal(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
    )


def test_help_is_quick_and_names_every_command(capsys):
    code = "import time; since = time.process_time(); from shoal.command.main import main; main(['--help']); "
    code += "print(time.process_time() - since)"
    outputs = [
        subprocess.run([sys.executable, "-c", code], cwd=PLATFORM, capture_output=True, text=True).stdout
        for _ in "ab"
    ]
    assert min(float(output.splitlines()[-1]) for output in outputs) < 0.5
    assert all(f"  {name} " in outputs[0] for name in main.COMMANDS)
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"shoal {VERSION}\n"


def test_python_m_shoal_is_the_command_and_a_wrong_name_is_answered():
    done = shoal("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: shoal has no command 'trian' (did you mean 'train'?)")


@pytest.mark.parametrize("name", [name for name in main.COMMANDS if name not in ("ui", "completion")])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main.main([name, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: shoal {name}")


def test_help_of_a_section_has_its_keys_alone(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help", "optim"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  optim.lr ") for line in lines)
    assert all(line.startswith("  optim.") for line in lines)
    with pytest.raises(ConfigError, match=r"no such section.*did you mean 'optim'"):
        main.main(["train", "--help", "optm"])


def test_init_writes_what_passes_its_own_check_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert init.main(["first model"]) == 0
    folder = tmp_path / "first model"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "my_model.py", "my_data.py"}
    done = shoal("check", "config.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "the config is sound" in done.stdout
    with pytest.raises(UserError, match=r"config\.yaml' exists, and is not overwritten"):
        init.main(["first model"])


def test_every_config_that_comes_with_shoal_is_found_by_its_name():
    assert {"digits.yaml", "tune.yaml", "gpt.yaml"} <= set(shipped_configs())
    assert load(RunConfig, "gpt").task == "causal_lm"


def made(
    path: Path, name: str, status: str = "FINISHED", argv: tuple[str, ...] = (), **identity
) -> RunFolder:
    folder = RunFolder(str(path / "runs" / "shoal" / name))
    folder.create()
    folder.create_identity(name=name, experiment="shoal", tracking_uri="sqlite:///mlflow.db")
    folder.update(Identity, status=status, **identity)
    environment = Environment(
        python="", platform="", processor="", gpus=[], git=None, argv=list(argv), packages={}
    )
    folder.save(Metadata(environment=environment))
    return folder


def test_runs_lists_states_and_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds no runs"):
        runs.main([])
    done = made(tmp_path, "done")
    done.save(
        TrainResult(
            status="FINISHED", run_name="done", run_folder=done.uri, steps=7, metrics={"val/loss": 0.5}
        )
    )
    made(tmp_path, "stopped", "KILLED", ("/venv/bin/shoal", "train", "digits.yaml"))
    made(tmp_path, "failed", "FAILED", ("jobs/train.py", "a=b c"), reason="ValueError: no")
    made(tmp_path, "gone", "RUNNING", ("-c",))
    (tmp_path / "runs" / "shoal" / "damaged").mkdir()
    (tmp_path / "runs" / "shoal" / "damaged" / "run.json").write_text("{")
    assert runs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["shoal/done", "FINISHED"],
        ["shoal/stopped", "KILLED"],
        ["shoal/failed", "FAILED"],
        ["shoal/gone", "DIED"],
    ]
    assert "val/loss 0.5" in lines[1]
    assert lines[5:] == [
        f"shoal/done: finished; shoal sync {done.uri}",
        "shoal/stopped: interrupted; the same command goes on: shoal train digits.yaml",
        "shoal/failed: failed; ValueError: no; the same command goes on: python jobs/train.py 'a=b c'",
        "shoal/gone: its process is gone; the same command goes on",
    ]


def test_show_prints_a_run_by_its_name_or_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = made(tmp_path, "failed", "FAILED", ("/venv/bin/shoal", "train"), reason="ValueError: no")
    for name in ("failed", "shoal/failed", folder.uri):
        assert show.main([name]) == 0
        text = capsys.readouterr().out
        assert "state   FAILED: failed" in text
        assert "reason  ValueError: no" in text
    with pytest.raises(UserError, match="'other' is no run"):
        show.main(["other"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["shoal", "tr"], {"train", "transfer"}),
        (["shoal", "train", "optim.l"], {"optim.lr="}),
        (["shoal", "tune", "tune.num"], {"tune.num_samples="}),
        (["shoal", "train", "dig"], {"digits.yaml"}),
        (["shoal", "train", "--help", "op"], {"optim"}),
        (["shoal", "completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes_commands_keys_configs_and_sections(words, found, tmp_path):
    listed = " ".join(f"'{word}'" for word in words)
    code = f"{completion.script()}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _shoal; "
    done = subprocess.run(
        ["bash", "-c", code + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == found, done.stderr


def test_zsh_reads_the_script(capsys):
    assert main.main(["completion", "zsh"]) == 0
    text = capsys.readouterr().out
    assert "bashcompinit" in text
    if shutil.which("zsh"):
        done = subprocess.run(["zsh", "-f", "-c", f"{text}\nwhich _shoal"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_run_that_is_being_worked_on_is_waited_for(tmp_path):
    folder = made(tmp_path, "busy", "RUNNING")
    folder.acquire_lease()
    summary = run_table.summarise(RunFolder(folder.uri))
    assert summary.state == "RUNNING"
    assert summary.next == f"wait: {folder.lease().process} works on it"  # type: ignore[union-attr]
    assert summary.started[:4] == time.strftime("%Y")
