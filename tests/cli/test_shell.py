"""The shell of the command line: the verbs it lists, what it loads when, and how errors reach the user."""

import errno
import inspect
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import moegate
from moegate.cli import shell
from moegate.cli.shell import VERBS, app

VERB_SET = {
    *("demo", "train", "sweep", "report", "inspect", "import", "diff", "place", "prune-scores", "upcycle"),
    *("hf", "data", "bench", "ascend", "doctor"),
}
WIDE = {"TERMINAL_WIDTH": "200", "COLUMNS": "200", "NO_COLOR": "1"}


def test_the_set_of_verbs_is_pinned() -> None:
    assert set(VERBS) == VERB_SET


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_loads_and_says_what_it_does(verb: str) -> None:
    command = shell.load_verb(verb)
    first_line = inspect.cleandoc(command.help or "").splitlines()[0]
    assert first_line == VERBS[verb]
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


def test_help_lists_all_verbs_with_their_lines() -> None:
    shown = CliRunner(env=WIDE).invoke(app, ["--help"])
    assert shown.exit_code == 0
    for verb, line in VERBS.items():
        assert f" {verb} " in shown.output
        assert line in shown.output


def test_help_loads_no_verb() -> None:
    code = (
        "import sys\n"
        "from moegate.cli.shell import VERBS, app, python_name\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', [v for v in VERBS if f'moegate.cli.{python_name(v)}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_unknown_verb_is_a_usage_error_with_a_suggestion() -> None:
    shown = CliRunner(env=WIDE).invoke(app, ["doctr"])
    assert shown.exit_code == 2
    assert "doctor" in shown.output


def test_version() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.strip() == f"moegate {moegate.__version__}"


def make_every_verb_fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails() -> None:
        raise error

    def load(name: str) -> object:
        single = typer.Typer()
        single.command(name)(fails)
        return typer.main.get_command(single)

    monkeypatch.setattr(shell, "load_verb", load)
    monkeypatch.delenv("MOEGATE_TRACEBACK", raising=False)


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb fails as a library call with a bad argument would."""
    make_every_verb_fail(monkeypatch, ValueError("top_k=9 exceeds the 8 experts [of 2 kept groups]"))


def system_error(code: int, path: str | None = "/runs/[red]first") -> OSError:
    """The error that the operating system gives: OSError makes the subclass of the code."""
    return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (system_error(errno.ENOTDIR), "Can't use /runs/[red]first: a file is where a folder is needed."),
        (system_error(errno.EEXIST), "Can't use /runs/[red]first: a file is where a folder is needed."),
        (system_error(errno.EACCES), "Can't use /runs/[red]first: permission denied."),
        (system_error(errno.ENOSPC, None), "Can't read or write a file: no space left on device."),
        (system_error(errno.ENOENT), "Can't use /runs/[red]first: no such file or directory."),
        (FileNotFoundError("No configuration file at none.json."), "Error: No configuration file at none.json."),
    ],
    ids=["file-as-folder", "file-in-the-way", "permission", "disk-full", "missing", "own-sentence"],
)
def test_an_unusable_path_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: OSError, said: str) -> None:
    make_every_verb_fail(monkeypatch, error)
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert "Errno" not in shown.stderr


def test_a_reader_that_leaves_is_no_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    make_every_verb_fail(monkeypatch, system_error(errno.EPIPE, None))
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert shown.stderr == ""


@pytest.mark.usefixtures("failing_verb")
def test_errors_of_the_user_are_sentences_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEGATE_TRACEBACK", raising=False)
    shown = CliRunner(env=WIDE).invoke(app, ["doctor"])
    assert shown.exit_code == 2
    assert shown.stdout == ""
    # The square brackets are the message's own, not markup.
    assert "top_k=9 exceeds the 8 experts [of 2 kept groups]" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.usefixtures("failing_verb")
def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEGATE_TRACEBACK", "1")
    shown = CliRunner().invoke(app, ["doctor"])
    assert isinstance(shown.exception, ValueError)


@pytest.mark.parametrize("module", ["moegate", "moegate.cli"])
def test_the_installed_command_and_the_modules_are_the_same(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"moegate {moegate.__version__}"
