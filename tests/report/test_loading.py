"""Run and sweep directories: what is read, what is tolerated, and the sentence for each kind of damage."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegate.report.loading import load, load_run, load_sweep

Make = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_finished_run_is_read_as_written(make_run: Make) -> None:
    directory = make_run(top_k=4, seed=3)
    run = load_run(directory)
    result = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    assert (run.router, run.top_k, run.balance, run.seed, run.control) == ("topk", 4, "aux", 3, None)
    assert run.finished
    assert run.evaluation is not None
    assert run.evaluation.value == result["value"]
    np.testing.assert_array_equal(run.evaluation.domain_load_LNE, result["domain_load"])
    np.testing.assert_array_equal(run.evaluation.token_views[2].experts_LTK, result["token_view"][2]["experts"])
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert run.history.step == tuple(json.loads(line)["step"] for line in lines)
    np.testing.assert_array_equal(run.history.load[5].load_LE, json.loads(lines[5])["load"])


def test_an_unfinished_run_is_data_and_its_half_line_is_left_out(make_run: Make) -> None:
    run = load_run(make_run(finished=False, log_steps=10))
    assert not run.finished
    assert run.evaluation is None
    assert len(run.history.step) == 9


def test_a_run_that_has_logged_nothing_yet(make_run: Make) -> None:
    directory = make_run(finished=False)
    (directory / "metrics.jsonl").unlink()
    assert load_run(directory).history.step == ()


def test_a_complete_last_line_without_newline_counts(make_run: Make) -> None:
    directory = make_run(finished=False, log_steps=4)
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    (directory / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(load_run(directory).history.step) == 2


def test_a_resumed_log_keeps_the_later_lines(make_run: Make) -> None:
    directory = make_run(log_steps=6)
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    again = {**json.loads(lines[3]), "loss": 123.0}
    path.write_text("\n".join([*lines[:5], json.dumps(again), lines[4], lines[5]]) + "\n", encoding="utf-8")
    history = load_run(directory).history
    assert history.step == (10, 20, 30, 40, 50, 60)
    assert history.loss[3] == 123.0
    assert [window.first_step for window in history.load] == [10, 20, 30, 40, 50, 60]


def test_a_long_log_is_merged_without_losing_an_assignment(make_run: Make) -> None:
    directory = make_run(log_steps=700, layers=1, experts=4)
    windows = load_run(directory).history.load
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    total = np.sum([json.loads(line)["load"] for line in lines], axis=0)
    assert len(windows) <= 256
    np.testing.assert_array_equal(np.sum([window.load_LE for window in windows], axis=0), total)
    assert (windows[0].first_step, windows[-1].last_step) == (10, 7000)


def test_a_diverged_run_is_read_and_its_value_is_none(make_run: Make) -> None:
    directory = make_run()
    path = directory / "evaluation.json"
    path.write_text(re.sub(r'"value": [^,]+', '"value": NaN', path.read_text(encoding="utf-8")), encoding="utf-8")
    run = load_run(directory)
    assert run.evaluation is not None
    assert run.evaluation.value is None


def test_a_dense_control_has_no_layers_and_no_loads(make_run: Make) -> None:
    directory = make_run(control="dense", layers=2)

    def dense_manifest(value: dict[str, Any]) -> None:
        value.update(num_layers=0, rule=None)

    def dense_result(value: dict[str, Any]) -> None:
        value.update(load=[], domain_load=[], coactivation=[], utilization=None, max_violation=None)
        value["token_view"] = [{**view, "experts": [], "weights": []} for view in value["token_view"]]

    edit(directory / "run.json", dense_manifest)
    edit(directory / "evaluation.json", dense_result)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    empty = {"load": [], "max_violation": [], "utilization": [], "drop_rate": []}
    text = "".join(json.dumps({**line, **empty}) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
    run = load_run(directory)
    assert run.control == "dense"
    assert run.history.load == ()
    assert run.evaluation is not None
    assert run.evaluation.token_views == ()


def test_layers_may_differ_in_their_number_of_slots(make_run: Make) -> None:
    directory = make_run(layers=2, top_k=2)

    def widen(value: dict[str, Any]) -> None:
        view = value["token_view"][0]
        for name, fill in (("experts", -1), ("weights", 0.0)):
            view[name][1] = [[*slots, fill] for slots in view[name][1]]

    edit(directory / "evaluation.json", widen)
    evaluation = load_run(directory).evaluation
    assert evaluation is not None
    experts = evaluation.token_views[0].experts_LTK
    assert experts.shape[2] == 3
    assert (experts[0, :, 2] == -1).all()


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, value)


def set_view(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["token_view"][0].__setitem__(name, value)


DAMAGE: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("run.json", set_field("schema", 2), "'schema' is 2; expected 1"),
    ("run.json", set_field("status", "paused"), "'status' is 'paused'; expected 'running' or 'done'"),
    ("run.json", lambda content: content.pop("seed"), "has no 'seed'; expected a whole number"),
    ("run.json", set_field("num_layers", -1), "'num_layers' is -1"),
    ("run.json", set_field("num_experts", True), "'num_experts' is True; expected a whole number"),
    ("run.json", set_field("name", ["x" * 100]), "'name' is"),
    ("evaluation.json", set_field("metric", "f1"), "'metric' is 'f1'; expected 'accuracy' or 'bits_per_byte'"),
    ("evaluation.json", lambda content: content.pop("value"), "has no 'value'"),
    ("evaluation.json", set_field("value", "good"), "'value' is 'good'; expected a number"),
    ("evaluation.json", set_field("load", [[1, 2], [3, 4]]), "'load' has the shape [2, 2]"),
    ("evaluation.json", set_field("load", [[1, 2], [3]]), "'load' is [[1, 2], [3]]; expected numbers"),
    ("evaluation.json", set_field("load", [[-1] + [1] * 7] * 3), "'load' holds a negative"),
    ("evaluation.json", set_field("domains", ["a", 3]), "'domains'"),
    ("evaluation.json", set_field("per_domain", {"english": "low"}), "'english' is 'low'; expected a number"),
    ("evaluation.json", set_field("token_view", ["text"]), "'token_view'"),
    ("evaluation.json", set_view("experts", [[[99, 0]] * 120] * 3), "expert numbers from 0 to 7"),
    ("evaluation.json", set_view("experts", [[], [], []]), "'experts'"),
    ("evaluation.json", set_view("tokens", [1, 2]), "'tokens'"),
    ("evaluation.json", set_view("pixels", [[[0]]]), "1 pictures for 120 tokens"),
    ("evaluation.json", set_view("pixels", ["not a picture"] * 120), "not a base64 PNG"),
]


@pytest.mark.parametrize(("name", "change", "message"), DAMAGE, ids=[f"{d[0]}-{d[2][:30]}" for d in DAMAGE])
def test_a_wrong_field_is_named_with_its_file(
    make_run: Make, name: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    directory = make_run()
    edit(directory / name, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_run(directory)
    assert str(directory / name) in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "evaluation.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut or damaged"),
        (lambda data: b"\xff\xfe" + data, "not UTF-8"),
        (lambda data: b"[1, 2]\n", "expected a JSON object"),
        (lambda data: b"[" * 100_000, "cut or damaged"),
    ],
    ids=["cut", "binary", "list", "nested"],
)
def test_a_damaged_file_is_named(make_run: Make, name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    directory = make_run()
    path = directory / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        load_run(directory)
    assert str(path) in str(caught.value)


def test_a_damaged_line_in_the_middle_is_named_even_in_an_unfinished_run(make_run: Make) -> None:
    directory = make_run(finished=False)
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4][:30]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 5 is not JSON"):
        load_run(directory)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json"])
def test_a_missing_file_of_a_finished_run_is_named(make_run: Make, name: str) -> None:
    directory = make_run()
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"{re.escape(str(directory / name))} is missing"):
        load_run(directory)


def test_an_empty_log_of_a_finished_run(make_run: Make) -> None:
    directory = make_run()
    (directory / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty although"):
        load_run(directory)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither run\.json nor sweep\.json"):
        load([tmp_path])
    with pytest.raises(ValueError, match="does not exist"):
        load([tmp_path / "nothing"])
    with pytest.raises(ValueError, match="pass at least one"):
        load([])


def test_the_table_of_a_finished_sweep_is_the_one_on_disk(make_sweep: Make) -> None:
    directory = make_sweep("sweep", [{"seed": seed, "top_k": k} for seed in (0, 1) for k in (1, 2)])
    edit(directory / "table.json", lambda content: content["rows"][0].update(mean=0.25, ci95=None))
    sweep = load_sweep(directory)
    assert sweep.rows[0].mean == 0.25
    assert sweep.rows[0].ci95 is None
    assert len(sweep.runs) == 4


def test_an_unfinished_sweep_is_summed_up_from_its_runs(make_sweep: Make) -> None:
    cells = [{"seed": 0}, {"seed": 1}, {"seed": 2, "finished": False}]
    directory = make_sweep("sweep", cells, finished=False, waiting=2)
    (directory / "table.json").unlink()
    sweep = load_sweep(directory)
    assert [row.seeds for row in sweep.rows] == [2]
    assert sweep.waiting == ("zz-waiting-0", "zz-waiting-1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "table.json").unlink(), "table.json is missing"),
        (lambda d: (d / "table.json").write_text('{"rows": 3}'), "'rows' is 3"),
        (lambda d: (d / "table.json").write_text('{"rows": []}'), "'rows' is []"),
        (lambda d: (d / "table.json").write_text('{"rows": [{"router": "topk"}]}'), "row 1 has no"),
        (lambda d: (d / "sweep.json").write_text("{"), "sweep.json is not JSON"),
        (lambda d: next((d / "cells").iterdir()).joinpath("run.json").unlink(), "run.json is missing although"),
    ],
)
def test_damage_to_a_finished_sweep(make_sweep: Make, damage: Callable[[Path], Any], message: str) -> None:
    directory = make_sweep("sweep", [{"seed": 0}, {"seed": 1}])
    damage(directory)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_sweep(directory)


def test_a_finished_sweep_without_cells(make_sweep: Make) -> None:
    directory = make_sweep("sweep", [{}])
    edit(directory / "sweep.json", set_field("finished", True))
    for cell in (directory / "cells").iterdir():
        for file in cell.iterdir():
            file.unlink()
        cell.rmdir()
    with pytest.raises(ValueError, match="holds no cells"):
        load_sweep(directory)


def test_single_runs_are_gathered_by_kind_and_averaged_over_seeds(make_run: Make) -> None:
    paths = [make_run(f"t{seed}", seed=seed, value=2.0 + seed / 10) for seed in range(3)]
    paths.append(make_run("i", kind="image"))
    image, text = load([*paths, paths[0]])
    assert (image.kind, text.kind) == ("image", "text")
    (row,) = text.rows
    assert row.seeds == 3
    assert row.mean == pytest.approx(2.1)
    # Student's t for two degrees of freedom, from the printed tables.
    assert row.ci95 == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)


def test_a_diverged_seed_is_not_averaged_away(make_run: Make) -> None:
    paths = [make_run(f"t{seed}", seed=seed) for seed in range(2)]
    edit(paths[0] / "evaluation.json", set_field("value", float("inf")))
    (sweep,) = load(paths)
    assert np.isnan(sweep.rows[0].mean)


def test_runs_with_different_metrics_cannot_be_averaged(make_run: Make) -> None:
    paths = [make_run(f"t{seed}", seed=seed) for seed in range(2)]
    edit(paths[0] / "evaluation.json", set_field("metric", "accuracy"))
    with pytest.raises(ValueError, match="measure different metrics"):
        load(paths)
