"""What the tables, the sentences below them and the pictures say about rows."""

import sys

import pytest

from moegate.bench.markdown import as_markdown
from moegate.bench.pictures import draw_bars
from moegate.bench.suites import topk
from moegate.bench.tables import duration, growth, slope, tell_cases


def timed(us, ours=False):
    return {"ours": ours, "min_us": us, "median_us": 2 * us, "rounds": 3}


def row(case="softmax", threads=1, shape=None, variants=None, **changed):
    shape = shape or {"T": 4, "E": 8}
    variants = variants or {"moegate": timed(10.0, ours=True), "PyTorch": timed(25.0)}
    ours = next((v["min_us"] for v in variants.values() if v["ours"] and "min_us" in v), None)
    ratios = {
        name: {"min": entry["min_us"] / ours, "median": entry["median_us"] / ours}
        for name, entry in variants.items()
        if ours and "min_us" in entry and not entry["ours"]
    }
    sizes = " ".join(f"{letter}={size}" for letter, size in shape.items())
    machine = {"model": "CPU", "cores": 2, "kernels": "avx2"}
    return {
        "key": f"{case} {sizes}",
        "case": case,
        "shape": shape,
        "threads": threads,
        "variants": variants,
        "ratios": ratios,
        "missing": {},
        "others_cores": 0.0,
        "floor": {"us": 5.0, "bound": "bytes", "rate": 1e9},
        "facts": {},
        "machine": machine,
        "versions": {"torch": "2"},
        "commit": "abc",
        "time": "2026-01-01T00:00:00",
        **changed,
    }


def lines_of(rows):
    text = as_markdown(tell_cases(rows, title="Gate"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_times_and_ratios_of_each_number_of_threads_stand_side_by_side():
    faster = {"moegate": timed(5.0, ours=True), "PyTorch": timed(20.0)}
    lines = lines_of([row(), row(threads=2, variants=faster)])
    assert lines[0] == ["case", "1 thread", "×", "2 threads", "×"]
    assert lines[2][0] == "**softmax**  T=4 E=8"
    assert lines[3] == ["moegate", "10.0 µs (20.0 µs)", "", "5.00 µs (10.0 µs)", ""]
    assert lines[4] == ["PyTorch", "25.0 µs (50.0 µs)", "2.50", "20.0 µs (40.0 µs)", "4.00"]
    assert lines[5] == ["floor, by bytes", "5.00 µs", "0.50", "5.00 µs", "1.00"]


def test_the_last_of_several_rows_of_a_case_counts():
    lines = lines_of([row(), row(variants={"moegate": timed(7.0, ours=True)})])
    assert lines[3][1] == "7.00 µs (14.0 µs)"


def test_a_wrong_variant_has_no_time_and_a_reason():
    wrong = {"moegate": timed(10.0, ours=True), "PyTorch": {"ours": False, "trouble": "wrong: off by 3"}}
    parts = tell_cases([row(variants=wrong)], title="Gate")
    assert "Not timed: PyTorch at softmax T=4 E=8: wrong: off by 3." in parts
    assert lines_of([row(variants=wrong)])[4] == ["PyTorch", "**wrong**", ""]


def test_without_a_time_of_ours_there_is_no_ratio():
    wrong = {"moegate": {"ours": True, "trouble": "wrong: x"}, "PyTorch": timed(3.0)}
    assert [line[2] for line in lines_of([row(variants=wrong)])[2:]] == [""] * 4


def test_absent_peers_are_named_with_their_reason():
    some = [row(missing={"zentorch": "not installed"}), row(case="b", missing={"zentorch": "not installed", "x": "y"})]
    parts = tell_cases(some, title="Gate")
    assert "Without zentorch everywhere: not installed." in parts
    assert "Without x at b T=4 E=8: y." in parts


@pytest.mark.parametrize(("cores", "warned"), [(None, False), (0.1, False), (0.7, True)])
def test_a_busy_machine_is_reported(cores, warned):
    parts = tell_cases([row(others_cores=cores)], title="Gate")
    assert any("Disturbed" in str(part) and "0.7" in str(part) for part in parts) == warned


def test_growth_is_an_exponent_and_memory_beyond_input_and_output():
    rows = [
        row("growth in T", shape={"T": 10, "E": 8}, variants={"moegate": timed(1.0, ours=True)}),
        row(
            "growth in T",
            shape={"T": 1000, "E": 8},
            variants={"moegate": timed(100.0, ours=True)},
            facts={"peak_bytes": 3 * 2**20, "output_bytes": 2**20},
        ),
    ]
    assert list(growth(rows)) == [
        "growth in T, 1 threads: time grows as T^1.00; at T=1000 E=8 it takes 2.0 MiB beyond its input and output."
    ]
    assert list(growth(rows[:1])) == []
    assert slope([1, 2, 4], [1, 4, 16]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.1234, "0.123 µs"),
        (9.87, "9.87 µs"),
        (999.4, "999 µs"),
        (1000.0, "1.00 ms"),
        (123456.0, "123 ms"),
        (0, "0 µs"),
    ],
)
def test_durations_have_three_digits(us, text):
    assert duration(us) == text


def test_bars_are_drawn_for_every_number_of_threads(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(threads=threads, case=case) for threads in (1, 2) for case in ("a", "b")]
    files = draw_bars(rows, tmp_path / "new" / "gate", title="Gate")
    assert [file.name for file in files] == ["gate.png", "gate.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()


def test_nothing_is_drawn_without_a_ratio_or_without_matplotlib(tmp_path, monkeypatch):
    only_ours = {"moegate": timed(1.0, ours=True)}
    assert draw_bars([row(variants=only_ours)], tmp_path / "gate", title="Gate") == []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_bars([row()], tmp_path / "gate", title="Gate") == []
    assert list(tmp_path.iterdir()) == []


def topk_row(length, k, **us):
    variants = {topk.OURS: timed(40.0, ours=True), **{name: timed(us.get(name, 100.0)) for name in topk.NAMES}}
    facts = {"scratch_bytes": {"heap": 64}, "peak_bytes": {"heap": 0, topk.OURS: 2**20}}
    shape = {"N": length, "k": k, "rows": 4}
    return row("topk", shape=shape, variants={**variants, topk.TORCH: timed(50.0)}, facts=facts)


def test_topk_tells_times_a_row_crossovers_and_memory():
    rows = [topk_row(64, 8, heap=8.0, blocked=16.0), topk_row(256, 8, heap=32.0, blocked=16.0)]
    text = as_markdown(topk.tell(rows))
    assert "| 64 | 8 | 16 | 10 | 25 | **2** | 25 | 4 | 12.5 |" in text
    assert "k=8, 1 threads, of the four: from N = 128 on blocked, not heap." in text
    assert "| heap | 64 B | 0 B |" in text
    assert "| moegate ordered_topk | – | 1,024 KiB |" in text


def test_topk_draws_its_curves(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [topk_row(length, k, heap=1.0, blocked=64 / length) for length in (16, 64, 256) for k in (1, 8)]
    files = topk.draw(rows, tmp_path / "topk")
    assert [file.name for file in files] == ["topk.png", "topk.svg"]
    assert topk.draw(rows[:1], tmp_path / "none") == []


def test_a_wrong_algorithm_has_no_time_a_row():
    rows = [topk_row(64, 8)]
    rows[0]["variants"]["heap"] = {"ours": False, "trouble": "wrong: x"}
    assert "| **wrong** |" in as_markdown(topk.tell(rows))
