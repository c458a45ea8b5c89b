"""`moegate bench --device`: where the results go, and what a machine without a card says."""

from pathlib import Path

import pytest

from moegate.bench.gpu import verb
from moegate.bench.gpu.verb import NO_CARD, bench_on_device, why_no_kernels


@pytest.fixture
def sittings(monkeypatch):
    made = []
    monkeypatch.setattr(verb, "why_no_kernels", lambda environment, has_triton: None)

    class Sitting:
        def __init__(self, plan, folder, say):
            made.append((plan, folder))

        def run(self):
            return 0

    monkeypatch.setattr(verb, "Sitting", Sitting)
    return made


def bench(suite="all", device="cuda", seconds=420.0, only="", output=None):
    return bench_on_device(suite, device, seconds=seconds, only=only, output=output)


def test_a_machine_without_a_card_says_so(sittings, monkeypatch, capsys):
    monkeypatch.setattr(verb, "why_no_card", lambda: "There is no card.")
    assert bench() == NO_CARD
    assert capsys.readouterr().out.startswith("There is no card. Nothing was measured.")
    assert sittings == []


@pytest.mark.parametrize(
    ("name", "value"), [("MOEGATE_KERNEL", "0"), ("MOEGATE_KERNEL", "triton"), ("TRITON_INTERPRET", "1")]
)
def test_a_variable_that_a_suite_would_inherit_is_refused(name, value, sittings, monkeypatch, capsys):
    """Else the references, or an interpreter, would be timed under moegate's name."""
    monkeypatch.setattr(verb, "why_no_kernels", why_no_kernels)
    monkeypatch.setattr(verb, "HAS_TRITON", True)
    monkeypatch.setattr(verb, "why_no_card", lambda: None)
    for other in ("MOEGATE_KERNEL", "TRITON_INTERPRET"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert bench() == NO_CARD
    assert capsys.readouterr().out.startswith(f"{name}={value} takes the kernels away")
    assert sittings == []
    monkeypatch.delenv(name)
    assert bench() == 0
    assert len(sittings) == 1


@pytest.mark.parametrize("device", ["cuda", "rehearsal"])
def test_without_triton_there_is_nothing_to_run(device, sittings, monkeypatch, capsys):
    monkeypatch.setattr(verb, "why_no_kernels", why_no_kernels)
    monkeypatch.setattr(verb, "HAS_TRITON", False)
    monkeypatch.setattr(verb, "why_no_card", lambda: None)
    assert bench(device=device) == NO_CARD
    assert capsys.readouterr().out.startswith("Triton is not installed")
    assert sittings == []


def test_results_go_to_the_clone_and_those_of_a_rehearsal_do_not(sittings, monkeypatch, tmp_path):
    monkeypatch.setattr(verb, "why_no_card", lambda: None)
    monkeypatch.setattr(verb, "checkout", lambda: tmp_path)
    bench()
    bench(device="rehearsal")
    bench(output=tmp_path / "there")
    monkeypatch.setattr(verb, "checkout", lambda: None)
    bench("gate", only="softmax, ,T=1 ")
    folders = [folder for _, folder in sittings]
    assert folders == [
        tmp_path / "benchmarks" / "results",
        Path("moegate-bench"),
        tmp_path / "there",
        Path("moegate-bench"),
    ]
    plan = sittings[-1][0]
    assert (plan.suites, plan.only, plan.device, plan.seconds) == (("gate",), ("softmax", "T=1 "), "cuda", 420.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device": "tpu"}, "There is no device 'tpu'"),
        ({"suite": "topk"}, "There is no benchmark 'topk' for a GPU"),
        ({"only": "absent,none such"}, "No case has 'absent' or 'none such' in its name"),
        ({"seconds": 0.0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
    ],
)
def test_what_is_refused(sittings, arguments, said):
    with pytest.raises(ValueError, match=said):
        bench(**arguments)
    assert sittings == []
