"""The gate as an operator of PyTorch: its registration, torch.compile and torch.export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moegate.ops.topk_gate import topk_gate
from moegate.ops.topk_gate.options import SCORES, options_for


def options(score: str, differentiable: bool) -> tuple[Any, ...]:
    return options_for(
        16, True, 3, score, 4, 2, "top2_sum", score == "sigmoid", 1e-20, 2.5, "logits", torch.int32, True, False,
        differentiable,
    )  # fmt: skip


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.usefixtures("compiler")
def test_registration(score: str) -> None:
    mask = torch.tensor([True, False, True, True, True])
    inputs = (torch.randn(5, 16), torch.randn(16), mask, *options(score, False))
    torch.library.opcheck(torch.ops.moegate.topk_gate.default, inputs)
    inputs = (torch.randn(5, 16, requires_grad=True), torch.randn(16), mask, *options(score, True))
    torch.library.opcheck(torch.ops.moegate.topk_gate_statistics.default, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("compiler")
def test_registration_of_the_gradient(dtype: torch.dtype) -> None:
    logits, chosen = torch.randn(5, 16).to(dtype), options("softmax", True)
    _, index, _, logsumexp, values = torch.ops.moegate.topk_gate_statistics(logits, torch.randn(16), None, *chosen)
    grads = torch.randn(5, 3), torch.randn(5).double(), torch.randn(5, 3)
    inputs = (*grads, index, values, logsumexp, logits, 16, dtype, *chosen[3:])
    torch.library.opcheck(torch.ops.moegate.topk_gate_backward.default, inputs)


def loss_of(logits: Tensor, bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    gated = topk_gate(
        logits, top_k=3, score="softmax", bias_E=bias, token_mask_T=mask, scale=2.5, with_counts=True,
        with_logsumexp=True,
    )  # fmt: skip
    assert gated.counts is not None and gated.logsumexp is not None
    return gated.weights.square().sum() + gated.logsumexp.square().mean(), gated.index, gated.counts


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, on their first import
@pytest.mark.usefixtures("compiler")
def test_one_graph_gives_what_eager_gives(backend: str, dynamic: bool) -> None:
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend, dynamic=dynamic)
    for num_tokens in (7, 9):
        logits, bias, mask = torch.randn(num_tokens, 16), torch.randn(16), torch.rand(num_tokens) < 0.8
        results = []
        for run in (loss_of, compiled):
            own = logits.clone().requires_grad_()
            loss, index, counts = run(own, bias, mask)
            loss.backward()
            results.append((loss, index, counts, own.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)
        assert results[0][1].equal(results[1][1]) and results[0][2].equal(results[1][2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("compiler")
def test_without_a_gradient(dtype: torch.dtype) -> None:
    def run(logits: Tensor) -> tuple[Tensor, Tensor]:
        gated = topk_gate(logits, top_k=2, score="sigmoid", renormalize=True)
        return gated.weights, gated.index

    logits = torch.randn(6, 11, dtype=dtype)
    weights, index = torch.compile(run, fullgraph=True, backend="aot_eager")(logits)
    expected = topk_gate(logits, top_k=2, score="sigmoid", renormalize=True)
    assert index.equal(expected.index)
    torch.testing.assert_close(weights, expected.weights)


@pytest.mark.usefixtures("compiler")
def test_export() -> None:
    class Gate(nn.Module):
        def forward(self, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            gated = topk_gate(
                logits, top_k=3, score="sigmoid", bias_E=bias, num_groups=4, groups_kept=2, group_score="top2_sum"
            )
            return gated.weights, gated.index

    tokens = {0: torch.export.Dim("tokens", min=2)}
    program = torch.export.export(Gate(), (torch.randn(6, 16), torch.randn(16)), dynamic_shapes=(tokens, None))
    longer, bias = torch.randn(9, 16), torch.randn(16)
    weights, index = program.module()(longer, bias)
    expected_weights, expected_index = Gate()(longer, bias)
    assert weights.equal(expected_weights) and index.equal(expected_index)


def test_meta_tensors_give_shapes() -> None:
    gated = topk_gate(
        torch.empty(4, 9, device="meta"), top_k=2, score="sigmoid", index_dtype=torch.int32, with_counts=True
    )
    assert gated.weights.shape == (4, 2) and gated.weights.is_meta and gated.index.dtype == torch.int32
    assert gated.counts is not None and gated.counts.shape == (9,)
