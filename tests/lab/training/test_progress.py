import io

import pytest
from rich.console import Console

from moegate.lab.training.progress import BarReporter, LineReporter, StepReport, make_reporter

REPORT = StepReport(3, 1.2345, 9876.5, 0.5)


def test_a_log_gets_lines_and_a_terminal_bars() -> None:
    assert isinstance(make_reporter(Console(file=io.StringIO())), LineReporter)
    assert isinstance(make_reporter(Console(file=io.StringIO(), force_terminal=True)), BarReporter)


def test_lines_come_at_most_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    file = io.StringIO()
    reporter = LineReporter(Console(file=file, width=200), every_seconds=10)
    reporter.runs(total=4, done=1)
    reporter.start("topk K=2", 100, 20)
    for clock in (1.0, 9.9, 10.0, 10.1, 19.9, 20.0):  # noqa: B007 (read by the patched clock)
        reporter.advance(REPORT)
    reporter.finish("accuracy 95 %")
    reporter.start("next", 100, 0)
    reporter.close()
    assert file.getvalue().splitlines() == [
        "[2/4] topk K=2: 100 steps, resumed after step 20",
        "  step 3/100  loss 1.234  9,876 tokens/s  MaxVio 0.50",
        "  step 3/100  loss 1.234  9,876 tokens/s  MaxVio 0.50",
        "  accuracy 95 %",
        "[3/4] next: 100 steps",
    ]


@pytest.mark.parametrize("in_sweep", [True, False])
def test_bars_show_the_run_and_its_outcome(in_sweep: bool) -> None:
    file = io.StringIO()
    reporter = BarReporter(Console(file=file, force_terminal=True, width=200))
    if in_sweep:
        reporter.runs(total=2, done=0)
    for title in ("first", "second") if in_sweep else ("first",):
        reporter.start(title, 10, 0)
        reporter.advance(REPORT)
        reporter.finish("accuracy 95 %")
    reporter.close()
    text = file.getvalue()
    assert "first" in text
    assert "accuracy 95 %" in text
    assert ("all runs" in text) == in_sweep
    assert ("second: accuracy 95 %" in text) == in_sweep


def test_a_model_that_routes_nothing_has_no_violation() -> None:
    assert "MaxVio" not in str(StepReport(1, 0.5, 10.0, None))
