"""`moegate hf families`: the table on a terminal, as JSON and as the documentation has it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moegate
from moegate.cli.shell import app

pytest.importorskip("transformers")

from moegate.hf.families import FAMILIES

WIDE = {"TERMINAL_WIDTH": "300", "COLUMNS": "300", "NO_COLOR": "1"}
PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "hugging-face-families.md"


def shown(*options: str) -> str:
    result = CliRunner(env=WIDE).invoke(app, ["hf", "families", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_json_has_a_row_a_block_with_a_rule_that_can_be_read() -> None:
    rows = json.loads(shown("--json"))
    assert [row["block"] for row in rows] == [row.name for _, rows in sorted(FAMILIES.items()) for row in rows]
    for row in rows:
        if row["status"] == "exact":
            fixed = 2 if row["family"] == "phimoe" else 1
            assert moegate.RoutingRule.from_dict(row["rule"]).selection.top_k == fixed
            assert not row["no_rule"]
        else:
            assert row["status"] == "no rule"
            assert row["rule"] is None
            assert row["no_rule"]
    (glm,) = (row for row in rows if row["family"] == "glm4_moe")
    assert glm["bias"] == "gate.e_score_correction_bias"


def test_the_table_names_every_family_and_says_why_one_has_no_rule() -> None:
    table = " ".join(shown().split())
    for family in FAMILIES:
        assert family in table
    assert "2 of them without a rule" in table
    assert "nothing routes: the caller names the expert of an image" in table


def test_the_page_of_the_documentation_is_in_step() -> None:
    # To renew it, put the output of `moegate hf families --markdown` in the place of its table.
    page = PAGE.read_text("utf-8")
    table = shown("--markdown").strip()
    written = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    assert written == table


def test_two_forms_at_once_are_refused() -> None:
    result = CliRunner(env=WIDE).invoke(app, ["hf", "families", "--json", "--markdown"])
    assert result.exit_code == 2
    assert "choose one of them" in result.output
