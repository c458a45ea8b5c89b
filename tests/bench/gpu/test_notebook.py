"""What the processes of a sitting leave each other: rows of this sitting alone, and a culprit when one dies."""

import json

from moegate.bench.gpu.measuring import CAPTURE
from moegate.bench.gpu.notebook import Notebook


def test_rows_are_those_of_the_sitting(tmp_path):
    first, second = Notebook(tmp_path, "first"), Notebook(tmp_path, "second")
    first.append({"suite": "gate", "key": "a"})
    second.append({"suite": "gate", "key": "b"})
    second.append({"suite": "plan", "key": "c"})
    assert first.measured("gate") == {"a"}
    assert second.measured("gate") == {"b"}
    lines = (tmp_path / "cuda.jsonl").read_text().splitlines()
    assert [json.loads(line)["sitting"] for line in lines] == ["first", "second", "second"]


def test_a_culprit_is_not_run_again_and_its_case_is(tmp_path):
    notebook = Notebook(tmp_path, "now")
    notebook.turn("gate", "a", "PyTorch", "check")
    notebook.blame("its process ended with status -11")
    assert notebook.measured("gate") == set()
    assert notebook.known("gate", "a").lost == {"PyTorch": "its process ended with status -11"}
    assert notebook.known("gate", "b").lost == {}
    assert notebook.known("plan", "a").lost == {}
    assert notebook.current() is None


def test_a_capture_gets_a_second_chance_without_a_graph(tmp_path):
    notebook = Notebook(tmp_path, "now")
    for lost, eager in (({}, {"Liger"}), ({"Liger": "again"}, set())):
        notebook.turn("layer", "a", "Liger", CAPTURE)
        notebook.blame("again")
        known = notebook.known("layer", "a")
        assert (known.lost, known.eager) == (lost, eager)


def test_a_peer_that_broke_off_a_capture_is_not_captured_in_other_cases(tmp_path):
    notebook = Notebook(tmp_path, "now")
    notebook.turn("decode", "a", "Liger", CAPTURE)
    notebook.blame("broken off")
    known = notebook.known("decode", "b")
    assert (known.lost, known.eager, known.peers_lost, known.peers_eager) == ({}, set(), {}, {"Liger"})
    assert notebook.known("plan", "b").peers_eager == set()


def test_a_peer_that_ended_two_processes_takes_no_part_in_other_cases(tmp_path):
    notebook = Notebook(tmp_path, "now")
    for key, lost in (("a", {}), ("b", {"Liger": "hung at b"})):
        notebook.turn("decode", key, "Liger", "check")
        notebook.blame(f"hung at {key}")
        assert notebook.known("decode", "c").peers_lost == lost


def test_nobody_is_blamed_without_a_note(tmp_path):
    notebook = Notebook(tmp_path, "now")
    notebook.blame("nothing")
    assert notebook.rows() == []
    (tmp_path / ".cuda-turn.json").write_text('{"suite": "ga')
    assert notebook.current() is None
    notebook.forget()
    notebook.forget()
