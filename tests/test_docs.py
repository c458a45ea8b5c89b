"""Everything shown is run: the Python snippets of README.md and docs/, and the examples in docstrings.

The ```python fences of one page run in order and share their names, as a reader would type them; ```pycon
fences are doctests. A fence that shall not run is not Python: ```text, ```console.
"""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import moegate
from moegate.cli.shell import VERBS, load_verb

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if path.is_file() and not path.is_relative_to(ROOT / "docs" / "reference")
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*$", flags=re.M | re.S)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
VERB_CALL = re.compile(r"(?:^|\s|/)moegate (?P<verb>[a-z][a-z-]*)(?P<rest>[^\n#|&;]*)", re.M)


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(path: Path, *languages: str) -> list[tuple[str, int, str]]:
    """Language, line number and text of each fence in one of the languages, with its indentation removed."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in languages:
            body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.M)
            found.append((match["language"], text.count("\n", 0, match.start("body")), body))
    return found


def with_fences(*languages: str) -> list[Path]:
    return [path for path in PAGES if fences(path, *languages)]


def module_names() -> list[str]:
    names = []
    for path in sorted((SOURCE / "moegate").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_the_readme_has_a_quickstart() -> None:
    assert fences(ROOT / "README.md", "python")


def run_doctests(test: doctest.DocTest, *, keep_names: bool = False) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    failed, _ = runner.run(test, out=report.append, clear_globs=not keep_names)
    assert failed == 0, "".join(report)


@pytest.mark.parametrize("path", with_fences("python", "pycon"), ids=page_id)
def test_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for language, line, body in fences(path, "python", "pycon"):
        if language == "pycon":
            session = doctest.DocTestParser().get_doctest(body, {}, path.name, str(path), line)
            session.globs = names
            run_doctests(session, keep_names=True)
        else:
            # Blank lines in front make the line numbers of a traceback those of the page.
            exec(compile("\n" * line + body, str(path), "exec"), names)


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        run_doctests(test)


def test_every_root_name_that_is_called_has_an_example() -> None:
    shown = {
        name: value
        for name in moegate.__all__
        if callable(value := getattr(moegate, name)) and value.__module__.startswith("moegate")
    }
    lacking = [name for name, value in shown.items() if ">>>" not in (value.__doc__ or "")]
    assert lacking == []


@pytest.mark.parametrize("path", with_fences("console", "bash", "sh"), ids=page_id)
def test_commands_shown_exist(path: Path) -> None:
    for _, line, body in fences(path, "console", "bash", "sh"):
        joined = body.replace("\\\n", " ")
        for call in VERB_CALL.finditer(joined):
            where = f"{page_id(path)}:{line + 1}: moegate {call['verb']}"
            assert call["verb"] in VERBS, f"{where}: no such verb"
            known = {name for p in load_verb(call["verb"]).params for name in (*p.opts, *p.secondary_opts)}
            used = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", call["rest"]))
            assert used <= known | {"--help"}, f"{where}: unknown options {sorted(used - known)}"
        targets = set(re.findall(r"^\$? ?make ([a-z-]+)", joined, flags=re.M))
        verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
        assert targets <= verbs, f"{page_id(path)}: unknown make verbs {sorted(targets - verbs)}"
