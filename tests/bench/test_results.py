"""Rows are appended whole, whatever was there before, and are taken over only for the same code and machine."""

import json

import pytest

from moegate.bench.results import Results

KNOWN = {"commit": "abc", "machine": {"model": "x"}, "versions": {"torch": "2"}}


def test_each_row_is_a_line_and_nothing_is_replaced(tmp_path):
    results = Results(tmp_path / "new" / "folder", "gate")
    results.append({"number": 1})
    results.append({"number": 2})
    assert results.path == tmp_path / "new" / "folder" / "gate.jsonl"
    assert results.path.read_text() == '{"number": 1}\n{"number": 2}\n'


@pytest.mark.parametrize("torn", ['{"number": 1', '{"numb', "{"])
def test_a_line_that_was_cut_off_costs_no_other_row(tmp_path, torn):
    results = Results(tmp_path, "gate")
    results.append({"number": 0})
    with results.path.open("a") as file:
        file.write(torn)
    results.append({"number": 2})
    assert results.rows() == [{"number": 0}, {"number": 2}]
    assert results.path.read_text().endswith('\n{"number": 2}\n')


def test_a_row_is_on_the_disk_when_append_returns(tmp_path):
    results = Results(tmp_path, "gate")
    results.append({"text": "é × µ"})
    assert json.loads(results.path.read_bytes()) == {"text": "é × µ"}


def test_no_file_has_no_rows(tmp_path):
    assert Results(tmp_path, "gate").rows() == []


def test_rows_of_the_same_code_and_machine_are_found_the_last_one_first(tmp_path):
    results = Results(tmp_path, "gate")
    for number, changed in enumerate([{}, {}, {"commit": "other"}, {"machine": {}}, {"versions": {"torch": "3"}}]):
        results.append({"key": "a", "threads": 1, "number": number, **KNOWN, **changed})
    results.append({"key": "a", "threads": 2, "number": 9, **KNOWN})
    results.append({"key": "a", "threads": 2, "number": 10, "quick": True, **KNOWN})
    with results.path.open("a") as file:
        file.write("3\n[]\nnull\n" + json.dumps(KNOWN) + "\n")
    found = results.measured(KNOWN, quick=False)
    assert {key: row["number"] for key, row in found.items()} == {("a", 1): 1, ("a", 2): 9}


def test_what_uncommitted_code_measured_is_not_taken_over(tmp_path):
    results, dirty = Results(tmp_path, "gate"), {**KNOWN, "commit": "abc-dirty"}
    results.append({"key": "a", "threads": 1, **dirty})
    assert results.measured(dirty, quick=False) == {}
