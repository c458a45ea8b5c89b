"""The build of the kernels: where it can't be, the package installs without, and says why."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
cmake = pytest.importorskip("cmake", reason="only in development: the build brings its own")

HINDERED = ("no C++ compiler", "torch 2.10 or newer")


@pytest.fixture(params=HINDERED)
def hindered(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The reason, and a Python: the compiler fails, or it works and the environment holds no torch."""
    if request.param == HINDERED[0]:
        monkeypatch.setenv("CXX", "/bin/false")
        return request.param, Path(sys.executable)
    monkeypatch.delenv("MOEGATE_TORCH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "lone"], check=True)
    return request.param, tmp_path / "lone" / "bin" / "python"


def configure(folder: Path, python: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [Path(cmake.CMAKE_BIN_DIR) / "cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={python}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_build_goes_on_without_kernels_and_says_why(hindered: tuple[str, Path], tmp_path: Path) -> None:
    reason, python = hindered
    done = configure(tmp_path / "build", python)
    assert done.returncode == 0, done.stderr
    assert "Installing without the CPU kernels" in done.stderr
    assert reason in (tmp_path / "build" / "no_kernels.txt").read_text()


def test_kernels_that_are_required_and_can_not_be_built_are_an_error(
    hindered: tuple[str, Path], tmp_path: Path
) -> None:
    reason, python = hindered
    done = configure(tmp_path / "build", python, "-DMOEGATE_REQUIRE_KERNELS=ON")
    assert done.returncode != 0
    assert reason in " ".join(done.stderr.split())
