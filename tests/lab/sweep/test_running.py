"""Sweeps end to end, on runs of a few steps."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from moegate.lab.sweep import Axes, SweepPlan, failed_cells, finished_rows, make_rows, read_runs, run_sweep
from moegate.lab.sweep.table import MEANS
from moegate.lab.training import Interrupted
from moegate.lab.training.progress import SilentReporter, StepReport
from moegate.report import write_report

BASE = {"steps": 3, "batch_size": 16, "log_every": 1, "checkpoint_every": 1}
AXES = Axes((1, 2), ("topk", "expert_choice"), ("aux",), 3, ("dense", "frozen"))
PLAN = SweepPlan("image", AXES, BASE, "moegate sweep ...")


class Count(SilentReporter):
    """Notes what is trained."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.total: tuple[int, int] = (0, 0)

    def runs(self, total: int, done: int) -> None:
        self.total = (total, done)

    def start(self, title: str, total_steps: int, done_steps: int) -> None:
        self.started.append((title, done_steps))


class InterruptAt(Count):
    """Stops as Ctrl-C does, at a step of a run."""

    def __init__(self, run: int, step: int) -> None:
        super().__init__()
        self.place = (run, step)

    def advance(self, report: StepReport) -> None:
        if (len(self.started), report.step) == self.place:
            raise Interrupted(report.step)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweeps") / "finished"
    run_sweep(PLAN, directory)
    return directory


def strip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]


def test_every_cell_is_a_run_with_its_place_in_the_sweep(finished: Path) -> None:
    cells = sorted(path.name for path in (finished / "cells").iterdir())
    assert len(cells) == 3 * (2 + 2 + 2 + 2)
    described = json.loads((finished / "cells" / "topk-k2-aux-s1" / "run.json").read_text())
    assert described["cell"] == {"router": "topk", "top_k": 2, "balance": "aux", "seed": 1, "control": None}
    sweep = json.loads((finished / "sweep.json").read_text())
    assert sweep["finished"] is True
    assert sweep["axes"] == {
        "top_k": [1, 2],
        "router": ["topk", "expert_choice"],
        "balance": ["aux"],
        "seeds": 3,
        "controls": ["dense", "frozen"],
    }


def test_the_table_is_what_the_runs_say(finished: Path) -> None:
    rows = json.loads((finished / "table.json").read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        prefix = {"dense": f"dense-control-k{row['top_k']}", "frozen": f"frozen-topk-k{row['top_k']}-none"}.get(
            row["control"], f"{row['router']}-k{row['top_k']}-{row['balance']}"
        )
        found = [
            json.loads((finished / "cells" / f"{prefix}-s{seed}" / "evaluation.json").read_text()) for seed in range(3)
        ]
        values = [evaluation["value"] for evaluation in found]
        assert row["mean"] == pytest.approx(np.mean(values))
        expected = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        assert row["ci95"] == pytest.approx(expected)
        assert row["seeds"] == 3
        assert row["tokens_per_second"] == pytest.approx(np.mean([e["tokens_per_second"] for e in found]))
        for name in ("utilization", "max_violation", "drop_rate", "experts_per_token"):
            known = [evaluation[name] for evaluation in found]
            if row["control"] == "dense":
                assert row[name] is None
            else:
                assert row[name] == pytest.approx(statistics.fmean(known))
        assert row["causal"] is (row["router"] != "expert_choice")


def test_rows_are_in_the_order_of_the_axes(finished: Path) -> None:
    rows = json.loads((finished / "table.json").read_text())["rows"]
    found = [(row["control"], row["router"], row["top_k"]) for row in rows]
    assert found == [
        (control, router, k)
        for control, router in ((None, "topk"), (None, "expert_choice"), ("dense", "topk"), ("frozen", "topk"))
        for k in (1, 2)
    ]


def test_differences_are_taken_seed_by_seed(finished: Path) -> None:
    reference, *others = finished_rows(PLAN, finished)
    assert reference["difference"] is reference["difference_ci95"] is None

    def values(prefix: str) -> list[float]:
        paths = [finished / "cells" / f"{prefix}-s{seed}" / "evaluation.json" for seed in range(3)]
        return [json.loads(path.read_text())["value"] for path in paths]

    first = values("topk-k1-aux")
    for row, prefix in zip(others, ("topk-k2-aux", "expert_choice-k1-none", "expert_choice-k2-none"), strict=False):
        differences = np.array(values(prefix)) - first
        assert row["difference"] == pytest.approx(differences.mean())
        expected = stats.t.ppf(0.975, 2) * stats.sem(differences)
        assert row["difference_ci95"] == pytest.approx(expected)


def test_seeds_without_a_partner_do_not_enter_the_difference() -> None:
    def run(top_k: int, seed: int, value: float) -> Any:
        cell = {"router": "topk", "top_k": top_k, "balance": "aux", "seed": seed, "control": None}
        numbers = dict.fromkeys(MEANS, 1.0)
        evaluation = {"metric": "accuracy", "value": value, "tokens_per_second": 1.0, **numbers}
        return {"cell": cell, "top_k": top_k, "parameters": 1, "active_parameters": 1, "causal": True}, evaluation

    rows = make_rows([run(1, 0, 0.5), run(1, 1, 0.6), run(2, 1, 0.7), run(2, 2, 0.9)])
    assert rows[1]["difference"] == pytest.approx(0.1)
    assert rows[1]["difference_ci95"] is None


def test_the_csv_says_what_the_json_says(finished: Path) -> None:
    rows = json.loads((finished / "table.json").read_text())["rows"]
    with (finished / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["router"] for line in lines] == [row["router"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert set(line) == set(row)
        assert float(line["mean"]) == row["mean"]
        assert line["utilization"] == ("" if row["utilization"] is None else str(row["utilization"]))


def test_seeds_differ_in_weights_and_in_data(finished: Path) -> None:
    logs = [(finished / "cells" / f"topk-k2-aux-s{seed}" / "metrics.jsonl").read_text() for seed in range(3)]
    assert len({json.loads(log.splitlines()[0])["loss"] for log in logs}) == 3


def test_a_finished_sweep_trains_nothing_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*") if path.is_file()}
    reporter = Count()
    rows = run_sweep(PLAN, finished, resume=True, reporter=reporter)
    assert reporter.started == []
    assert reporter.total == (24, 24)
    assert rows == json.loads((finished / "table.json").read_text())["rows"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_sweep_goes_on_where_it_stopped(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cut"
    with pytest.raises(Interrupted):
        run_sweep(PLAN, directory, reporter=InterruptAt(run=5, step=3))
    assert json.loads((directory / "sweep.json").read_text())["finished"] is False
    assert len(json.loads((directory / "table.json").read_text())["rows"]) == 4
    reporter = Count()
    rows = run_sweep(PLAN, directory, resume=True, reporter=reporter)
    assert reporter.total == (24, 4)
    assert len(reporter.started) == 20
    assert reporter.started[0] == ("dense control K=1, seed 0", 2)
    assert strip(rows) == strip(finished_rows(PLAN, finished))


class FailOnce(Count):
    """Raises what a diverged loss raises, at a step of a run."""

    def __init__(self, run: int, step: int) -> None:
        super().__init__()
        self.place, self.outcomes = (run, step), list[str]()

    def advance(self, report: StepReport) -> None:
        if (len(self.started), report.step) == self.place:
            raise ValueError(f"The loss of step {report.step} is nan.")

    def finish(self, message: str) -> None:
        self.outcomes.append(message)


@pytest.mark.parametrize("step", [1, 3])
def test_a_failed_cell_is_noted_and_the_others_are_trained(finished: Path, tmp_path: Path, step: int) -> None:
    directory, reporter = tmp_path / "sweep", FailOnce(run=2, step=step)
    rows = run_sweep(PLAN, directory, reporter=reporter)
    sentence = f"The loss of step {step} is nan."
    assert len(reporter.started) == len(reporter.outcomes) == 24
    assert reporter.outcomes[1] == f"failed: {sentence}"
    assert failed_cells(directory) == {"topk-k2-aux-s0": sentence}
    assert json.loads((directory / "sweep.json").read_text())["finished"] is False
    assert {row["seeds"] for row in rows if (row["router"], row["top_k"], row["control"]) == ("topk", 2, None)} == {2}
    assert sum(row["seeds"] for row in rows) == 23
    write_report([directory], tmp_path / "report.html")

    again = Count()
    rows = run_sweep(PLAN, directory, resume=True, reporter=again)
    assert [title for title, _ in again.started] == ["topk K=2 aux, seed 0"]
    assert failed_cells(directory) == {}
    assert json.loads((directory / "sweep.json").read_text())["finished"] is True
    assert strip(rows) == strip(finished_rows(PLAN, finished))


def test_a_cell_that_cannot_even_be_built_does_not_stop_the_others(tmp_path: Path) -> None:
    # Groups of one expert can't be scored by the sum of their best two.
    plan = SweepPlan("image", Axes((2,), ("topk", "deepseek_v3"), ("none",), 1), {**BASE, "num_experts": 7})
    for resume in (False, True):
        rows = run_sweep(plan, tmp_path / "sweep", resume=resume)
        assert [row["router"] for row in rows] == ["topk"]
        assert list(failed_cells(tmp_path / "sweep")) == ["deepseek_v3-k2-none-s0"]


def test_a_sweep_is_never_written_over_unasked(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds a sweep.*--resume"):
        run_sweep(PLAN, finished)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (SweepPlan("image", AXES, {**BASE, "steps": 4}), "steps: 4 here, 3 there"),
        (SweepPlan("image", AXES, {**BASE, "num_layers": 1}), "num_layers: 1 here, nothing there"),
        (SweepPlan("text", AXES, BASE), "kind: text here, image there"),
        (
            SweepPlan("image", Axes((1,), ("topk", "expert_choice"), ("aux",), 4), BASE),
            "top_k: 1 here, 1,2 there; seeds: 4 here, 3 there; controls: none here, dense,frozen there",
        ),
    ],
)
def test_a_changed_sweep_is_refused_with_all_that_differs_and_nothing_else(
    finished: Path, plan: SweepPlan, message: str
) -> None:
    with pytest.raises(ValueError, match=f"continued with these: {message}. Use the same settings"):
        run_sweep(plan, finished, resume=True)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no sweep"):
        run_sweep(PLAN, tmp_path)


@pytest.mark.parametrize("name", ["router", "top_k", "seed", "task", "control"])
def test_base_settings_must_not_decide_what_the_axes_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sets {name}"):
        run_sweep(SweepPlan("image", AXES, {**BASE, name: 1}), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_bad_base_settings_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown setting 'stepz'"):
        run_sweep(SweepPlan("image", AXES, {"stepz": 1}), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_there_is_no_table_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No sweep in"):
        read_runs(tmp_path)


def test_the_report_reads_what_the_sweep_wrote(finished: Path, tmp_path: Path) -> None:
    page = write_report([finished], tmp_path / "report.html")
    assert "expert_choice" in page.read_text()
