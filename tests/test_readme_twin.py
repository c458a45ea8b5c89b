"""README.zh-CN.md says in Chinese what README.md says: the same code, commands, tables and links."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE)}
TWINS = {"README.md", "README.zh-CN.md"}


def fences(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[path], flags=re.S)


def rows(path: Path) -> list[list[str]]:
    """The cells of all rows of all tables."""
    lines = [line for line in TEXTS[path].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", TEXTS[path])


def test_the_python_is_the_same_apart_from_comments() -> None:
    english, chinese = ([ast.dump(ast.parse(code)) for code in fences(path, "python")] for path in (ENGLISH, CHINESE))
    assert english
    assert chinese == english


def test_the_commands_are_the_same_apart_from_comments() -> None:
    english, chinese = (
        [[line.split("#")[0].strip() for line in text.splitlines()] for text in fences(path, "console")]
        for path in (ENGLISH, CHINESE)
    )
    assert english
    assert chinese == english


def test_the_tables_have_the_same_rows() -> None:
    english, chinese = rows(ENGLISH), rows(CHINESE)
    assert len(chinese) == len(english)
    for ours, theirs in zip(chinese, english, strict=True):
        assert code_spans(ours[0]) == code_spans(theirs[0])
        assert len(ours) == len(theirs)


def test_the_recipes_have_the_same_parts_and_papers() -> None:
    english, chinese = ([row for row in rows(path) if len(row) == 3] for path in (ENGLISH, CHINESE))
    assert len(english) > 20
    for ours, theirs in zip(chinese[2:], english[2:], strict=True):
        assert ours[1] == theirs[1]
        assert re.findall(r"\(\S+\)", ours[2]) == re.findall(r"\(\S+\)", theirs[2])


def test_the_sections_are_as_many() -> None:
    english, chinese = (re.findall(r"^#+ ", TEXTS[path], flags=re.M) for path in (ENGLISH, CHINESE))
    assert chinese == english


def test_the_links_are_the_same_and_lead_somewhere() -> None:
    english, chinese = (set(links(path)) - TWINS for path in (ENGLISH, CHINESE))
    assert chinese - english == {"docs/ascend/moe-gating-top-k.zh-CN.md"}
    assert english <= chinese
    local = [link for link in english | chinese if not link.startswith("http")]
    assert [link for link in local if not (ROOT / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize(("path", "other"), [(ENGLISH, CHINESE), (CHINESE, ENGLISH)], ids=["english", "chinese"])
def test_each_names_the_other_first(path: Path, other: Path) -> None:
    assert links(path)[0] == other.name
