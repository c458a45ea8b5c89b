"""Counts per expert: JSON, JSON Lines, llama.cpp's CSV and the dumps of SGLang's recorder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegate.trace import Loads, Trace, read, save_loads
from moegate.trace.importers.building import ASSUMED


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def as_loads(path: Path, **options: Any) -> Loads:
    loads = read(path, **options)
    assert isinstance(loads, Loads)
    return loads


def as_trace(path: Path, **options: Any) -> Trace:
    trace = read(path, **options)
    assert isinstance(trace, Trace)
    return trace


def test_layers_of_experts_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    loads = as_loads(written(tmp_path / "c.json", {"layer_10": {"1": 5}, "layer_2": {"0": 1, "3": 2.0}}))
    assert loads.layers == ("layer_2", "layer_10")
    assert loads.load.tolist() == [[1, 0, 0, 2], [0, 5, 0, 0]]
    assert loads.load.dtype == torch.int64
    assert loads.metadata["notes"] == [ASSUMED]


def test_averages_stay_fractions(tmp_path: Path) -> None:
    assert as_loads(written(tmp_path / "c.json", {"a": {"0": 0.5}})).load.tolist() == [[0.5]]


def test_vectors_say_how_many_experts_there_are(tmp_path: Path) -> None:
    loads = as_loads(written(tmp_path / "c.json", {"0": [1, 2, 0, 0], "1": [0, 0, 3, 0]}))
    assert loads.num_experts == (4, 4)
    assert loads.metadata["notes"] == []


@pytest.mark.parametrize("name", ["logical_count", "expert_load", "load"])
def test_matrices_of_steps_are_added(tmp_path: Path, name: str) -> None:
    steps_SLE = torch.arange(12).reshape(2, 2, 3)
    whole = as_loads(written(tmp_path / "c.json", {name: steps_SLE.tolist()}))
    lines = "\n".join(json.dumps({"step": step, name: one.tolist()}) for step, one in enumerate(steps_SLE))
    assert torch.equal(whole.load, steps_SLE.sum(dim=0))
    assert torch.equal(as_loads(written(tmp_path / "c.jsonl", lines)).load, steps_SLE.sum(dim=0))


def test_lines_of_one_layer_each(tmp_path: Path) -> None:
    lines = [{"layer_id": 7, "load": [1, 2]}, {"layer_id": 3, "load": [5, 6]}, {"layer_id": 7, "load": [10, 20]}]
    loads = as_loads(written(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    assert loads.layers == ("3", "7")
    assert loads.load.tolist() == [[5, 6], [11, 22]]


def test_counts_of_physical_experts_become_logical(tmp_path: Path) -> None:
    value = {"expert_load": [[1, 2, 4], [8, 16, 32]], "physical_to_logical_map": [[0, 1, 0], [1, 1, 0]]}
    assert as_loads(written(tmp_path / "c.json", value)).load.tolist() == [[5, 2], [32, 24]]


def test_saved_loads_come_back(tmp_path: Path) -> None:
    loads = Loads(torch.tensor([[1, 0], [2, 3]]), ("b", "a"), (2, 2), {"notes": []})
    again = as_loads(save_loads(loads, tmp_path / "new" / "l.json"))
    assert (again.layers, again.num_experts) == (loads.layers, loads.num_experts)
    assert torch.equal(again.load, loads.load)


def test_saved_loads_keep_their_order_sizes_fractions_and_metadata(tmp_path: Path) -> None:
    loads = Loads(torch.tensor([[1, 0.5, 0], [2, 3, 1]]), ("layer 10", "layer 2"), (2, 3), {"notes": [ASSUMED]})
    again = as_loads(save_loads(loads, tmp_path / "l.json"))
    assert (again.layers, again.num_experts, again.metadata) == (loads.layers, loads.num_experts, loads.metadata)
    assert torch.equal(again.load, loads.load.double())
    nothing = as_loads(save_loads(Loads(torch.zeros(0, 0), (), ()), tmp_path / "n.json"))
    assert nothing.num_layers == 0


def own(**changes: Any) -> dict[str, Any]:
    return {"layers": ["a", "b"], "num_experts": [2, 3], "load": [[1, 2, 0], [3, 4, 5]], "metadata": {}} | changes


LYING = {
    "more experts": own(num_experts=[2, 4]),
    "fewer experts": own(num_experts=[1, 3]),
    "huge": own(num_experts=[2, 10**12]),
    "no numbers": own(num_experts=["2", 3]),
    "names": own(layers=["a", "a"]),
    "a name too few": own(layers=["a"]),
    "numbers as names": own(layers=[1, 2]),
    "no rows": own(load=[]),
    "ragged": own(load=[[1, 2], [3, 4, 5]]),
    "negative": own(load=[[1, -2, 0], [3, 4, 5]]),
    "one dimension": own(load=[1, 2]),
    "a list of metadata": own(metadata=[]),
    "no list": own(layers="ab"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_loads_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=r"l\.json"):
        read(written(tmp_path / "l.json", LYING[case]))


def test_a_number_of_experts_against_that_of_the_file_is_refused(tmp_path: Path) -> None:
    path = save_loads(Loads(torch.ones(1, 2), ("a",), (2,)), tmp_path / "l.json")
    assert as_loads(path, num_experts=2).num_experts == (2,)
    with pytest.raises(ValueError, match="a layer has 2 experts, so that num_experts can't be 4"):
        read(path, num_experts=4)


@pytest.mark.parametrize(
    "name", ["expert_load_pass", "num_tokens_per_expert", "tokens_per_expert", "expert_counts", "counts"]
)
def test_other_names_of_counts_in_lines(tmp_path: Path, name: str) -> None:
    lines = [{"step": step, "layer": layer, name: [step, layer]} for step in (1, 2) for layer in (0, 1)]
    loads = as_loads(written(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    assert loads.load.tolist() == [[3, 0], [3, 2]]


def test_experts_by_name(tmp_path: Path) -> None:
    loads = as_loads(written(tmp_path / "c.json", {"layer_0": {"expert_1": 5, "expert_0": 2}}))
    assert loads.load.tolist() == [[2, 5]]


HOSTILE_JSON = {
    "a layer twice": ('{"0": {"0": 1}, "0": {"0": 2}}', "'0' is there twice"),
    "an expert twice": ('{"0": {"1": 1, "1": 2}}', "'1' is there twice"),
    "an expert by two names": ('{"0": {"1": 1, "expert_1": 2}}', "expected counts by expert"),
    "nan": ('{"0": {"0": NaN}}', "nan is no count"),
    "infinite": ('{"0": {"0": Infinity}}', "inf is no count"),
    "negative": ('{"0": {"0": -1}}', "-1.0 is no count"),
    "negative expert": ('{"0": {"-1": 1}}', "expected counts by expert"),
    "huge expert": ('{"0": {"999999999": 1}}', "more than any model has experts"),
    "words": ('{"0": {"0": "many"}}', "not all entries are numbers"),
    "nested": ('{"0": {"0": [1]}}', "expected counts by expert"),
    "ragged": ('{"load": [[1, 2], [3]]}', "ragged"),
    "one dimension": ('{"load": [1, 2]}', "has 1 dimensions"),
    "four dimensions": ('{"load": [[[[1]]]]}', "has 4 dimensions"),
    "bad map": ('{"load": [[1, 2]], "physical_to_logical_map": [[0, -1]]}', "doesn't give a logical expert"),
    "huge map": ('{"load": [[1]], "physical_to_logical_map": [[4000000000]]}', "doesn't give a logical expert"),
    "huge number": ('{"0": {"0": 1' + "0" * 400 + "}}", "not all entries are numbers"),
    "empty": ("{}", "holds no counts"),
    "empty layers": ('{"0": {}}', "holds no counts"),
    "other JSON": ('{"model": "x", "layers": 3}', "expected counts by expert"),
    "cut": ('{"0": {"0": 1', "no JSON, or it is cut"),
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_what_is_wrong_with_counts_is_a_sentence(tmp_path: Path, case: str) -> None:
    text, message = HOSTILE_JSON[case]
    with pytest.raises(ValueError, match=message) as caught:
        read(written(tmp_path / "c.json", text))
    assert "c.json" in str(caught.value)


@pytest.mark.parametrize("header", ["", "layer,expert\n"])
@pytest.mark.parametrize("lines", ["3,0\n3,2\n5,1\n3,2\n", "3,0\r\n3,2\r\n5,1\r\n3,2", "3,0\n\n3, 2\n5,1\n3,2\n\n"])
def test_a_line_an_activation(tmp_path: Path, header: str, lines: str) -> None:
    (tmp_path / "t.csv").write_bytes(f"{header}{lines}".encode())
    loads = as_loads(tmp_path / "t.csv", num_experts=4)
    assert loads.layers == ("layer 3", "layer 5")
    assert loads.load.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("header", ["", "layer_id,experts\n"])
@pytest.mark.parametrize("separator", [",", ", ", ";", "\t"])
@pytest.mark.parametrize("inside", [" ", ",", ", "])
def test_other_separators(tmp_path: Path, header: str, separator: str, inside: str) -> None:
    header = header.replace(",", separator)
    lines = "".join(
        f'{layer}{separator}"{inside.join(experts)}"\n' for layer, experts in [(3, "25"), (5, "10"), (3, "04")]
    )
    with pytest.raises(ValueError, match="layer 5 has 1 lines, layer 3 has 2"):
        read(written(tmp_path / "t.csv", header + lines))
    trace = as_trace(written(tmp_path / "t.csv", header + lines + f'5{separator}"7{inside}1"\n'))
    assert trace.indices.tolist() == [[[2, 5], [1, 0]], [[0, 4], [7, 1]]]
    one = as_trace(written(tmp_path / "o.csv", header + f'3{separator}"2"\n5{separator}"1"\n'))
    assert one.indices.tolist() == [[[2], [1]]]
    loads = as_loads(written(tmp_path / "l.csv", header + f"3{separator}2\n5{separator}1\n3{separator}2\n"))
    assert loads.load.tolist() == [[0, 0, 2], [0, 1, 0]]


@pytest.mark.parametrize("header", ["", "layer_id,experts\n"])
def test_a_line_a_token_in_a_layer(tmp_path: Path, header: str) -> None:
    text = f'{header}3,"0 5"\n4,"1 2"\n3,"5 1"\n4,"0 2"\n'
    trace = as_trace(written(tmp_path / "t.csv", text))
    assert trace.layers == ("layer 3", "layer 4")
    assert trace.indices.tolist() == [[[0, 5], [1, 2]], [[5, 1], [0, 2]]]


HOSTILE_CSV = {
    "negative": ("0,1\n0,-1\n", "line 2: '0,-1' is neither"),
    "words": ("0,1\n0,x\n", "line 2: '0,x' is neither"),
    "three columns": ("0,1\n0,1,2\n", "line 2: '0,1,2' is neither"),
    "ragged": ('0,"1 2"\n0,"1 2 3"\n', "line 2: 3 experts, but the lines before have 2"),
    "cut": ('0,"1 2"\n1,"1 2"\n0,"1 3"\n', "layer 1 has 1 lines, layer 0 has 2"),
    "mixed": ('0,1\n0,"1 2"\n', "2 experts"),
    "long number": ("0,1\n0," + "9" * 5000 + "\n", "line 2"),
    "huge expert": ("0,999999999\n0,1\n", "more than any model has experts"),
    "fraction": ("0,1\n0,1.5\n", "line 2"),
}


@pytest.mark.parametrize("case", HOSTILE_CSV)
def test_what_is_wrong_with_lines_is_a_sentence(tmp_path: Path, case: str) -> None:
    text, message = HOSTILE_CSV[case]
    form = "llama.cpp-tokens" if '"' in text and case != "mixed" else "llama.cpp"
    with pytest.raises(ValueError, match=message) as caught:
        read(written(tmp_path / "t.csv", text), form)
    assert "t.csv" in str(caught.value)


def test_the_recorder_in_stat_mode(tmp_path: Path) -> None:
    count_SLE = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    dump = {"rank": 0, "logical_count": count_SLE, "average_utilization_rate_over_window": None}
    for name, value in {"steps": dump, "flat": {"logical_count": count_SLE.sum(dim=0)}}.items():
        torch.save(value, tmp_path / f"{name}.pt")
        loads = as_loads(tmp_path / f"{name}.pt")
        assert torch.equal(loads.load, count_SLE.sum(dim=0).long())
        assert loads.num_experts == (4, 4, 4)


@pytest.mark.parametrize("old_format", [False, True])
def test_the_recorder_by_token_gives_logical_experts(tmp_path: Path, old_format: bool) -> None:
    table_LP = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 1]])
    records = [
        {"forward_pass_id": 0, "topk_ids_of_layer": torch.tensor([[[0, 3]], [[0, 3]]]), "input_ids": [7]},
        {
            "forward_pass_id": 1,
            "topk_ids_of_layer": torch.tensor([[[2, 1]], [[2, -1]]]),
            "input_ids": torch.tensor([8]),
        },
    ]
    dump = {"records": records, "last_physical_to_logical_map": table_LP}
    torch.save(dump, tmp_path / "d.pt", _use_new_zipfile_serialization=not old_format)
    trace = as_trace(tmp_path / "d.pt")
    assert trace.indices.tolist() == [[[0, 0], [2, 1]], [[2, 1], [0, -1]]]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [7, 8]


def test_the_recorder_by_pass_gives_logical_loads(tmp_path: Path) -> None:
    records = [
        {"global_physical_count": torch.tensor([[1, 2, 4]])},
        {"global_physical_count": torch.tensor([[0, 0, 1]])},
    ]
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor([[0, 1, 0]])}, tmp_path / "d.pt")
    assert as_loads(tmp_path / "d.pt").load.tolist() == [[6, 2]]


HOSTILE_DUMPS = {
    "other": ({"weights": torch.ones(2)}, "neither a tensor logical_count nor a list of records"),
    "list": ([torch.ones(2)], "holds a list"),
    "nan": ({"logical_count": torch.tensor([[float("nan"), 1.0]])}, "nan is no count"),
    "negative": ({"logical_count": torch.tensor([[-1, 1]])}, "is no count"),
    "flat": ({"logical_count": torch.ones(3)}, r"has the shape \(3,\)"),
    "floats": ({"records": [{"topk_ids_of_layer": torch.ones(1, 1, 1)}]}, "expected integers"),
    "beyond": (
        {
            "records": [{"topk_ids_of_layer": torch.full((1, 1, 1), 9)}],
            "last_physical_to_logical_map": torch.zeros(1, 2).long(),
        },
        "physical experts or layers beyond",
    ),
    "no map": ({"records": [{"global_physical_count": torch.ones(1, 2)}]}, "last_physical_to_logical_map is missing"),
    "ragged": (
        {"records": [{"global_physical_count": torch.ones(1, 2)}, {"global_physical_count": torch.ones(2, 2)}]},
        "of one shape",
    ),
    "nothing": ({"records": []}, "neither"),
}


@pytest.mark.parametrize("case", HOSTILE_DUMPS)
def test_what_is_wrong_with_a_dump_is_a_sentence(tmp_path: Path, case: str) -> None:
    dump, message = HOSTILE_DUMPS[case]
    torch.save(dump, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "d.pt")
    assert "d.pt" in str(caught.value)


@pytest.mark.parametrize("old_format", [False, True])
def test_no_pickle_in_a_dump_is_executed(tmp_path: Path, malicious: Any, old_format: bool) -> None:
    dump = {"logical_count": torch.ones(2, 2), "extra": malicious}
    torch.save(dump, tmp_path / "d.pt", _use_new_zipfile_serialization=not old_format)
    for form in (None, "sglang-recorder"):
        with pytest.raises(ValueError, match="Python objects, which are not read because they can run code"):
            read(tmp_path / "d.pt", form)


@pytest.mark.parametrize("keep", [2, 50, 300, -30])
def test_a_cut_dump_is_a_sentence(tmp_path: Path, keep: int) -> None:
    torch.save({"logical_count": torch.ones(2, 2)}, tmp_path / "d.pt")
    (tmp_path / "d.pt").write_bytes((tmp_path / "d.pt").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"d\.pt"):
        read(tmp_path / "d.pt")


def test_loads_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        Loads(torch.ones(1, 2), ("a",), (3,))
    with pytest.raises(ValueError, match="negative or not finite"):
        Loads(torch.tensor([[np.nan]]), ("a",), (1,))
