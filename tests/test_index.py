"""The front page of the documentation leads to every page of a concept."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_index_lists_every_concept() -> None:
    listed = re.findall(r"\]\((concepts/[\w-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "concepts").glob("*.md"))
