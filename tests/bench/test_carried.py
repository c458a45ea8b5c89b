"""Peers in unpacked wheels are found and called as they want to be; a missing one is a reason."""

import sys

import pytest
import torch

from moegate.bench.oracles.gate import GateOracle, GateRule
from moegate.bench.oracles.mixture import MixtureOracle, Weights, routed
from moegate.bench.peers import liger, moe_ops, pytorch_gate, pytorch_plan, sglang
from moegate.bench.peers.carried import carried_file, carried_module, shorten
from moegate.bench.peers.finding import PeerMissing

# Stand-ins for the packages, with their calls and layouts, in plain PyTorch.
SGLANG = """
from sglang.kernels.jit.utils import get_jit_cuda_arch, is_arch_support_pdl
from sglang.kernels.kernel_api_logging import debug_kernel_api
from sglang.kernels.ops.moe import moe_route_radix

@debug_kernel_api
def moe_fused_gate(scores, bias, topk, scoring_func="sigmoid", num_fused_shared_experts=0, renormalize=True,
                   routed_scaling_factor=1.0, apply_routed_scaling_factor_on_output=False, moe_softcapping=0.0,
                   num_expert_group=1, topk_group=1):
    from sglang.srt.environ import envs
    assert not envs.SGLANG_OPT_SM120_MTP_ROUTER_TOP22.get()
    assert not moe_route_radix.covered(scores, bias, topk)
    assert is_arch_support_pdl() is False
    activated = scores.softmax(-1) if scoring_func == "softmax" else scores.sigmoid()
    ids = (activated if bias is None else activated + bias).topk(topk, -1).indices
    weights = activated.gather(1, ids)
    return weights / weights.sum(-1, keepdim=True), ids.int()
"""
MOE_OPS = """
import torch

def fused_topk_softmax(logits, K, fp32_routing=False):
    values, ids = logits.float().topk(K, -1)
    return values.softmax(-1), ids.int()

def permute(input, indices, num_out_tokens=0, E=None):
    assert indices.dtype == torch.int32
    order = indices.reshape(-1).argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    counts = torch.bincount(indices.reshape(-1), minlength=E)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return input[order // indices.shape[1]], place.view(indices.shape).T.reshape(-1).int(), offsets

def unpermute(input, row_id_map, prob, num_tokens, num_topK, max_tokens=-1):
    rows = input[row_id_map.long()].view(num_topK, num_tokens, -1)
    return (rows * prob.T[..., None]).sum(0)

def grouped_gemm(A, B, offsets, trans_b=True):
    ends = offsets.tolist()
    return torch.cat([A[i:j] @ b.T for b, i, j in zip(B, ends, ends[1:])])
"""
LIGER = """
import torch

def compute_routing_metadata(topk_indices, E, block_m_token=64):
    assert topk_indices.dtype == torch.int32
    flat = topk_indices.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=E)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return counts, starts, order // topk_indices.shape[1], order, inverse, None, None

def _token_aggregation(Y, weights, s_rev, T, K, H):
    return (Y[s_rev.long()] * weights[:, None]).view(T, K, H).sum(1)

class LigerFusedMoEFunction:
    @staticmethod
    def apply(x, gate_up, down, index, weights):
        assert index.dtype == torch.int32 and weights.dtype == x.dtype
        gate, up = torch.einsum("td,tkfd->tkf", x, gate_up[index.long()]).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        return torch.einsum("tkf,tkdf,tk->td", inner, down[index.long()], weights)
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A folder with the stand-ins, each in a folder of its wheel; nothing of them stays loaded."""
    pytest.importorskip("triton", reason="a peer's kernels are looked through as Triton's")
    files = {
        "sglang/sglang/kernels/ops/moe/moe_fused_gate.py": SGLANG,
        "moe_ops/moe_ops/__init__.py": MOE_OPS,
        **{f"moe_ops/moe_ops/{name}_ops.py": "" for name in ("fused_topk_softmax", "grouped_gemm", "unpermute")},
        "moe_ops/moe_ops/grouped_gemm_ops_sm90.py": "",
        "liger/liger_kernel/__init__.py": "",
        "liger/liger_kernel/ops/__init__.py": "",
        "liger/liger_kernel/ops/fused_moe.py": LIGER,
        "liger/liger_kernel/ops/fused_moe_kernels.py": "".join(
            f"{name} = None\n"
            for name in (*liger._KERNELS, *liger._WEIGHT_KERNELS, "_token_gather_weighted_sum_kernel")
        ),
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setenv("MOEGATE_PEERS", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    caches = (sglang._router, moe_ops._package, liger._module)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"sglang", "moe_ops", "liger_kernel", "moegate_peer_sglang_router"}:
            del sys.modules[name]


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("rule", [GateRule("softmax", top_k=3), GateRule("sigmoid", top_k=3, biased=True)])
def test_the_router_of_sglang(rule):
    logits, bias = torch.randn(9, 16), torch.randn(16) if rule.biased else None
    assert GateOracle(logits, bias, rule).verdict(sglang.gate(rule, 16)(logits, bias)) is None


@pytest.mark.usefixtures("peers")
def test_the_gate_and_the_rows_of_moe_ops():
    rule, logits = GateRule("softmax", top_k=3), torch.randn(9, 8)
    index, weights = moe_ops.gate(rule, 8)(logits, None)
    assert GateOracle(logits, None, rule).verdict(pytorch_gate.Chosen(index, weights)) is None
    hidden = torch.randn(9, 5)
    rows, place, _ = moe_ops.permute(8)(hidden, index)
    summed = moe_ops.unpermute()(rows, place, weights)
    assert torch.allclose(summed, hidden * weights.sum(-1, keepdim=True), atol=1e-6)


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("peer", [moe_ops, liger])
def test_the_experts_of_moe_ops_and_liger(peer):
    hidden = torch.randn(12, 32)
    weights = Weights(torch.randn(4, 32), torch.randn(4, 32, 32) / 6, torch.randn(4, 32, 16) / 4)
    index, shares = routed(hidden, weights.gate, 2)
    out = peer.experts(weights.gate_up, weights.down)(hidden, index, shares.float())
    assert MixtureOracle(hidden, weights, top_k=2, dtype=torch.float32).output_verdict(out) is None


@pytest.mark.usefixtures("peers")
def test_the_plan_and_the_sums_of_liger():
    index, rows, weights = torch.randint(0, 5, (9, 3)), torch.randn(27, 4), torch.rand(9, 3)
    right = pytorch_plan.plan(index, 5)
    for found, expected in zip(liger.plan()(index, 5), right, strict=True):
        assert torch.equal(found, expected)
    summed = liger.combine()(rows, right.inverse.int(), weights)
    assert torch.allclose(summed, pytorch_plan.combine_by_inverse(rows, right.inverse, weights), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sglang.gate(GateRule("sigmoid", top_k=8), 256), "with a bias sigmoid and sqrt-softplus"),
        (lambda: sglang.gate(GateRule("softmax", top_k=8), 65536), "65536 experts are too many"),
        (lambda: moe_ops.gate(GateRule("sigmoid", top_k=8, biased=True), 256), "a renormalised softmax without bias"),
        (lambda: moe_ops.gate(GateRule("softmax", top_k=8), 65536), "65536 experts are too many"),
        (lambda: moe_ops.permute(60), "a power of two of experts, not 60"),
    ],
)
def test_what_a_peer_does_not_do(make, said):
    with pytest.raises(PeerMissing, match=said):
        make()


def test_a_missing_peer_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEGATE_PEERS", str(tmp_path / "none"))
    for look in (lambda: carried_file("nobody/file.py"), lambda: carried_module("nobody.part")):
        with pytest.raises(PeerMissing, match="nobody is neither installed nor in a folder of MOEGATE_PEERS"):
            look()


def test_a_peer_that_can_not_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "brokenpeer").mkdir()
    (tmp_path / "brokenpeer" / "__init__.py").write_text("raise OSError('libcuda.so is missing')")
    monkeypatch.setenv("MOEGATE_PEERS", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(PeerMissing, match=r"brokenpeer can't be imported: libcuda\.so is missing"):
        carried_module("brokenpeer")


def test_autotuned_kernels_keep_some_of_their_configurations(monkeypatch):
    pytest.importorskip("triton", reason="an autotuned kernel is one of Triton's")
    from triton import knobs
    from triton.runtime.autotuner import Autotuner

    kernel = Autotuner.__new__(Autotuner)
    kernel.configs = list(range(10))
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    shorten(kernel, 4)
    assert kernel.configs == [0, 3, 6, 9]
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    shorten(kernel, 4)
    assert kernel.configs == [0]
    shorten("no kernel", 4)
