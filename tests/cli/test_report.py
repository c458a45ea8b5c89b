"""`moegate report`."""

import json
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moegate.cli.shell import app

RUN = {
    "schema": 1,
    "name": "first steps",
    "kind": "text",
    "config": {},
    "rule": {},
    "num_layers": 1,
    "num_experts": 4,
    "top_k": 1,
    "router": "topk",
    "balance": "none",
    "seed": 0,
    "parameters": 10,
    "active_parameters": 5,
    "causal": True,
    "software": {},
    "started": "2026-11-21T20:00:00+00:00",
    "finished": None,
    "status": "running",
}


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    return directory


def test_it_writes_the_page_and_says_where(run_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "pages" / "page.html"
    shown = CliRunner().invoke(app, ["report", str(run_directory), "--output", str(output)])
    assert shown.exit_code == 0, shown.output
    assert "first steps" in output.read_text(encoding="utf-8")
    assert "page.html (0." in shown.output.replace("\n", "")


def test_open_shows_it_in_the_browser(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["report", str(run_directory), "--open"]).exit_code == 0
    assert opened == [(tmp_path / "report.html").as_uri()]


def test_a_damaged_run_is_a_sentence(run_directory: Path, tmp_path: Path) -> None:
    (run_directory / "run.json").write_text('{"schema": 1', encoding="utf-8")
    shown = CliRunner().invoke(app, ["report", str(run_directory), "-o", str(tmp_path / "page.html")])
    assert shown.exit_code == 2
    assert "cut or damaged" in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.output
    assert not (tmp_path / "page.html").exists()
