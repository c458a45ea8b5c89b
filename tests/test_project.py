"""The project's own scripts and settings: each check must be able to fail, and all must agree."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import moegate

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def toml_list(text: str, key: str) -> list[str]:
    """The strings of one list of pyproject.toml (tomllib needs Python 3.11)."""
    match = re.search(rf"^{key} = \[(.*?)\]\n", text, flags=re.M | re.S)
    assert match is not None, key
    return re.findall(r'"([^"]+)"', match[1])


@pytest.mark.parametrize("folder", ["home/someone", "Users/someone", "root", "work/main"])
def test_machine_paths_are_found(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = script("check_paths")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"fine\nsee /{folder}/x.py\n", encoding="utf-8")
    assert check.machine_paths(page) == [f"page.md:2: /{'/'.join((folder + '/x.py').split('/')[:2])}"]


@pytest.mark.parametrize(
    "text", ["docs/home/page.md", "/home/me/x", "https://host.org/work/x", "~/work/x", "/usr/bin/chromium"]
)
def test_other_paths_are_left_alone(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert script("check_paths").machine_paths(page) == []


def test_no_tracked_file_holds_a_machine_path() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked here")
    done = subprocess.run(
        [sys.executable, "scripts/check_paths.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


DOCUMENTED = '''"""A module."""

LIMIT = 3
"""The limit."""


def double(number: int, *, times: int = 2) -> int:
    """Twice the number.

    Args:
        number: what is doubled.

    Example:
        >>> double(2)
        4
    """
    return number * times


class Box:
    """A box."""

    def open(self) -> None:
        """Open it."""
'''


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator, with a module `moegate_sample` that it takes for one of the package's own."""
    module = script("build_reference")
    monkeypatch.setattr(module, "module_names", lambda: ["moegate_sample"])
    monkeypatch.delitem(sys.modules, "moegate_sample", raising=False)
    return module


def sample_page(
    reference: ModuleType, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[str]]:
    (folder / "moegate_sample.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    pages = reference.Reference()
    text = pages.page(importlib.import_module("moegate_sample"))
    return text, pages.undocumented


def test_reference_shows_signature_sections_and_example(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, undocumented = sample_page(reference, DOCUMENTED, tmp_path, monkeypatch)
    assert undocumented == []
    assert "double(number: int, *, times: int = 2) -> int" in text
    assert "**Args**\n\n\n- `number`: what is doubled." in text
    assert "```pycon\n>>> double(2)\n4\n```" in text
    assert "### Box.open" in text


@pytest.mark.parametrize(
    ("removed", "name"),
    [
        ('"""A module."""\n', "moegate_sample"),
        ('    """A box."""\n', "moegate_sample.Box"),
        ('        """Open it."""\n', "moegate_sample.Box.open"),
        ('"""The limit."""\n', "moegate_sample.LIMIT"),
    ],
)
def test_reference_notes_a_public_name_without_docstring(
    removed: str, name: str, reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indent = removed[: len(removed) - len(removed.lstrip())]
    source = DOCUMENTED.replace(removed, f"{indent}pass\n") + '\n\n__all__ = ["LIMIT", "Box", "double"]\n'
    _, undocumented = sample_page(reference, source, tmp_path, monkeypatch)
    assert undocumented == [name]


def test_reference_does_not_take_a_made_up_docstring(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = '"""M."""\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Point:\n    x: int\n'
    _, undocumented = sample_page(reference, source, tmp_path, monkeypatch)
    assert undocumented == ["moegate_sample.Point"]


def test_every_dependency_is_pinned() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = {
        normalised(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    wanted = [
        name
        for key in ("dependencies", "lab", "hf", "tensorboard", "dev", "docs", "requires")
        for name in toml_list(project, key)
    ]
    names = {normalised(re.split(r"[<>=\[; ]", name)[0]) for name in wanted}
    assert names - pinned == set()


def test_versions_agree() -> None:
    for name, pattern in {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(.+?)\]",
    }.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.M)
        assert match is not None, name
        assert match[1] == moegate.__version__, name


def test_hooks_run_what_make_check_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert all(repo["repo"] == "local" for repo in config["repos"]), "hooks must not fetch anything"
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks:
        tool = hook["entry"].removeprefix(".venv/bin/").split(" --")[0]
        assert f"$(BIN)/{tool}" in recipe, f"make check does not run {tool}"


def test_make_help_lists_every_verb() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    command = [make, "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert phony is not None
    assert {line.split()[1] for line in shown.splitlines()} == set(phony[1].split())
