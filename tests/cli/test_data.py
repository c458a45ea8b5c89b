"""`moegate data`: the table, its JSON form, and errors of a corpus of the user's own."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from moegate.cli import data as verb
from moegate.lab.data.rows import DataRow


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(verb.data)
    return CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(app, arguments)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for domain in ("law", "[red]medicine"):
        (tmp_path / domain).mkdir()
        for page in range(20):
            (tmp_path / domain / f"{page:02d}").write_text(f"{domain} {page:04d}\n")
    return tmp_path


def test_table_of_a_folder(corpus: Path) -> None:
    shown = call("--corpus", str(corpus))
    assert shown.exit_code == 0
    rows = [line.split() for line in shown.output.splitlines() if "medicine" in line or "law" in line]
    assert len(rows) == 2
    assert "[red]medicine" in shown.output  # a name is no markup
    law = next(row for row in rows if "law" in row)
    # 18 and 2 documents of 9 bytes and an end.
    assert [cell for cell in law if cell.isdigit()] == ["180", "20"]
    assert "digits" not in shown.output


def test_json_of_a_folder(corpus: Path) -> None:
    shown = json.loads(call("--json", "--corpus", str(corpus)).output)
    assert [row["domain"] for row in shown] == ["[red]medicine", "law"]
    assert set(shown[0]) == set(DataRow._fields)
    assert shown[1]["total"] == shown[1]["train"] + shown[1]["validation"] == 200


def test_default_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(verb.text, "load", lambda folder: None)
    monkeypatch.setattr(
        verb.text, "describe", lambda corpus: [DataRow("cpp", "bytes", 30, 20, 10, "headers", "BSD")] * 2
    )
    shown = call()
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.output.splitlines()]
    assert any("digits" in line and "4,000" in line and "1,000" in line for line in lines)
    assert any("all" in line and "40" in line and "20" in line for line in lines)
    assert "MOEGATE_CACHE" in shown.output


def test_a_wrong_folder_is_an_error_of_the_reader(tmp_path: Path) -> None:
    shown = call("--corpus", str(tmp_path))
    assert isinstance(shown.exception, ValueError)
    assert "has no subfolders" in str(shown.exception)
