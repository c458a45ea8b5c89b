"""A run keeps each row at once, loses nothing when it is stopped, and goes on where it was."""

import pytest

from moegate.bench import running
from moegate.bench.cases import Case, Entry, Variant
from moegate.bench.limits import Limits
from moegate.bench.results import Results
from moegate.bench.running import Options, chosen_entries, run_suite, without_variants
from moegate.bench.suites.suite import Suite
from moegate.bench.timing import Effort

LIMITS = dict.fromkeys((1, 2), Limits({2**20: 1e9}, {"float32": 1e9}))
EFFORT = Effort(rounds=3, round_seconds=1e-5, variant_seconds=1e-4)
KNOWN = {"time": "now", "commit": "abc", "machine": {}, "versions": {}}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(running, "circumstances", lambda: dict(KNOWN))


class Quiet:
    """Keeps what a bar would show."""

    def __init__(self):
        self.titles, self.count = [], 0

    def step(self, title):
        self.titles.append(title)

    def done(self):
        self.count += 1


def suite_of(*names, fails_at=None, built=None):
    def case(name):
        if built is not None:
            built.append(name)
        if name == fails_at:
            raise KeyboardInterrupt
        variants = (Variant("ours", lambda: 1, ours=True), Variant("peer one", lambda: 1), Variant("two", lambda: 1))
        return Case(name, {"T": 1}, "nothing", variants, lambda result: None)

    entries = [Entry(f"{name} T=1", lambda name=name: case(name), quick=name == "quick") for name in names]
    return Suite("some", lambda: entries, lambda rows: [], lambda rows, base: [])


def run(suite, folder, rows=None, **options):
    rows, progress = [] if rows is None else rows, Quiet()
    run_suite(suite, Options(effort=EFFORT, **options), folder, limits=LIMITS, progress=progress, rows=rows)
    return rows, progress


def test_every_case_is_measured_with_every_number_of_threads(tmp_path):
    rows, progress = run(suite_of("a", "b", "quick"), tmp_path)
    assert [(row["key"], row["threads"]) for row in rows] == [("a T=1", 1), ("a T=1", 2), ("b T=1", 1), ("b T=1", 2)]
    assert Results(tmp_path, "some").rows() == rows
    assert progress.titles[0] == "a T=1, 1 threads"
    assert progress.count == 4


def test_a_row_says_when_where_and_with_what(tmp_path):
    (row, *_), _ = run(suite_of("a"), tmp_path)
    assert {name: row[name] for name in KNOWN} == KNOWN
    assert row["suite"] == "some"


def test_an_interruption_loses_nothing_that_was_measured(tmp_path):
    rows = []
    with pytest.raises(KeyboardInterrupt):
        run(suite_of("a", "b", fails_at="b"), tmp_path, rows)
    assert [row["key"] for row in rows] == ["a T=1"] * 2
    assert Results(tmp_path, "some").rows() == rows


def test_a_resumed_run_measures_the_rest(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(suite_of("a", "b", fails_at="b"), tmp_path)
    built = []
    rows, _ = run(suite_of("a", "b", built=built), tmp_path, resume=True)
    assert built == ["b"]
    assert [row["key"] for row in rows] == ["a T=1", "a T=1", "b T=1", "b T=1"]
    assert len(Results(tmp_path, "some").rows()) == 4


def test_a_run_that_is_not_resumed_measures_everything_again(tmp_path):
    for _ in range(2):
        run(suite_of("a"), tmp_path)
    assert len(Results(tmp_path, "some").rows()) == 4


def test_a_case_is_built_once_for_all_threads(tmp_path):
    built = []
    run(suite_of("a", built=built), tmp_path)
    assert built == ["a"]


@pytest.mark.parametrize(
    ("quick", "only", "keys"),
    [
        (False, (), ["alpha T=1", "beta T=1"]),
        (True, (), ["quick T=1"]),
        (False, ("bet",), ["beta T=1"]),
        (False, ("alp", "bet"), ["alpha T=1", "beta T=1"]),
        (False, ("T=2",), []),
    ],
)
def test_cases_are_chosen_by_parts_of_their_names(quick, only, keys):
    found = chosen_entries(suite_of("alpha", "beta", "quick"), quick=quick, only=only)
    assert [entry.key for entry in found] == keys


def test_peers_can_be_left_out_and_ours_can_not():
    case = suite_of("a").entries()[0].build()
    kept = without_variants(case, ("one", "ours"))
    assert [variant.name for variant in kept.variants] == ["ours", "two"]
