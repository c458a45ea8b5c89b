"""Without typer and rich there is one verb; the command line says so, and what is missing."""

import os
import subprocess
import sys

import pytest

from moegate.bench.gpu.verb import NO_CARD
from moegate.cli import entry, plain

HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
SHELL = ("typer", "rich", "click", "safetensors", "matplotlib", "transformers")


def run(tmp_path, *arguments, hidden=SHELL, module="moegate.cli", **variables):
    """The command line in a Python that finds none of the hidden modules, in its own processes either."""
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    path = os.pathsep.join([str(tmp_path), *(folder for folder in sys.path if folder)])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_typer_the_verb_is_served_and_no_other(tmp_path):
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "All other verbs need typer and rich" in " ".join(shown.stdout.split())
    other = run(tmp_path, "train")
    assert other.returncode == 2
    assert "choose from" in other.stderr


def test_without_a_card_and_without_numpy_it_is_a_sentence(tmp_path):
    shown = run(tmp_path, "bench", "--device", "cuda", "--all", hidden=(*SHELL, "numpy"), CUDA_VISIBLE_DEVICES="")
    assert shown.returncode == NO_CARD, shown.stderr
    assert "Nothing was measured" in shown.stdout
    assert not (tmp_path / "moegate-bench").exists()


def test_the_process_of_a_suite_needs_pytorch_alone(tmp_path):
    code = "import sys, moegate.bench.gpu.suite_process\nprint([name for name in {hidden!r} if name in sys.modules])"
    (tmp_path / "asks.py").write_text(code.format(hidden=("numpy", *SHELL)))
    shown = run(tmp_path, hidden=(*SHELL, "numpy"), module="asks")
    assert shown.stdout.strip() == "[]", shown.stderr


@pytest.mark.timeout(300)  # four processes, each of which loads PyTorch
def test_a_rehearsal_without_typer_rich_and_the_compiled_library(tmp_path):
    pytest.importorskip("triton", reason="a rehearsal runs Triton's kernels in its interpreter")
    only = "checks plan: hostile,plan plan T=1 "
    arguments = ("bench", "--device", "rehearsal", "--all", "--only", only, "-o", str(tmp_path / "out"))
    shown = run(tmp_path, *arguments, module="moegate.cli", MOEGATE_LIBRARY="/nowhere")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    report = (tmp_path / "out" / "cuda.md").read_text()
    assert "A rehearsal on the CPU: nothing here was measured" in report
    assert "| plan: hostile indices | right |" in report
    assert "| plan T=1 E=256 K=8 | **moegate** |" in report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "gates", "--device", "cuda"], "choose one of checks, gate"),
        (["bench", "--device", "cuda", "--seconds", "0"], "--seconds must be above 0, got 0."),
    ],
)
def test_what_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        plain.main(arguments, ["typer"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_arguments_go_to_the_sitting(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(plain, "bench_on_device", lambda *where, **how: given.append((where, how)) or 7)
    assert plain.main(["bench", "--all", "--device", "cuda", "--only", "a", "-o", str(tmp_path)], ["rich"]) == 7
    assert given == [(("all", "cuda"), {"seconds": 420.0, "only": "a", "output": tmp_path})]


def test_the_shell_is_used_where_it_can_be(monkeypatch):
    called = []
    monkeypatch.setattr("moegate.cli.shell.main", lambda: called.append("shell"))
    entry.main()
    monkeypatch.setattr(entry, "_is_here", lambda name: name != "rich")
    monkeypatch.setattr(plain, "main", lambda arguments, missing: called.append(missing) or 0)
    with pytest.raises(SystemExit):
        entry.main()
    assert called == ["shell", ["rich"]]
