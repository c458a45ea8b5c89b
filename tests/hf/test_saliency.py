"""Saliency of experts, against the experts computed by hand from their weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("transformers")

from tiny_models import MODELS, VOCABULARY, Tiny, every_model, tiny_model

from moegate.hf.layers import moe_layers
from moegate.hf.loading import TextBatch
from moegate.hf.saliency import Saliency, saliency, save_saliency


def batch_of(lengths: list[int]) -> TextBatch:
    """Random windows, filled up on the right."""
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, VOCABULARY, mask.shape) * mask
    return TextBatch(ids, mask, torch.full_like(mask, -1), torch.full_like(mask, -1))


def by_hand(model: torch.nn.Module, batches: list[TextBatch]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Count, weight and contribution of each layer, with the SwiGLU of each expert written out, token by token."""
    results = []
    for layer in moe_layers(model):
        experts, size = layer.experts, layer.num_experts
        sums = (torch.zeros(size).long(), torch.zeros(size).double(), torch.zeros(size).double())
        calls: list[tuple[torch.Tensor, ...]] = []
        handle = experts.register_forward_pre_hook(
            lambda _, args, kwargs, calls=calls: calls.append((*args, *kwargs.values())), with_kwargs=True
        )
        for batch in batches:
            with torch.no_grad():
                model(**batch.inputs, use_cache=False)
            hidden, index, weights = calls.pop()
            for token in batch.attention_mask.reshape(-1).nonzero().flatten().tolist():
                for expert, weight in zip(index[token].tolist(), weights[token], strict=True):
                    gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
                    out = experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                    sums[0][expert] += 1
                    sums[1][expert] += weight.double()
                    sums[2][expert] += (weight * out.norm()).double()
        handle.remove()
        results.append(tuple(one.detach() for one in sums))
    return results


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "moegate"])
def test_each_slot_is_what_the_expert_computes(name: str, implementation: str) -> None:
    model = tiny_model(name)
    model.set_experts_implementation(implementation)
    batches = [batch_of([9, 5]), batch_of([4])]
    found = saliency(model, batches)
    expected = by_hand(model, batches)
    assert len(expected) == len(found.layers) > 1
    for layer, (count, weight, contribution) in enumerate(expected):
        assert found.tokens[layer] == 18
        assert torch.equal(found.count[layer], count)
        assert torch.allclose(found.weight[layer], weight, rtol=1e-5)
        assert torch.allclose(found.contribution[layer], contribution, rtol=1e-4)
        reap = torch.where(count > 0, contribution / count.clamp(min=1), 0.0)
        assert torch.allclose(found.reap[layer], reap, rtol=1e-4)
        assert torch.allclose(found.frequency[layer], count.double() / 18)
        assert torch.allclose(found.weight_mass[layer], weight / 18, rtol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt_oss")
    batch = batch_of([6])
    with torch.no_grad():
        before = model(**batch.inputs).logits
    found = saliency(model, [batch])
    assert (found.count.sum(dim=1) == 6 * moe_layers(model)[0].top_k).all()
    assert not any(layer.experts._forward_hooks for layer in moe_layers(model))
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, before)


@pytest.mark.parametrize("implementation", ["eager", "moegate"])
def test_experts_that_take_no_single_slot_are_asked_all_the_same(implementation: str) -> None:
    model, batch = tiny_model("longcat_flash"), batch_of([8])
    model.set_experts_implementation(implementation)
    found = saliency(model, [batch])
    layer = moe_layers(model)[0]
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = layer.experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**batch.inputs, use_cache=False)
        handle.remove()
        hidden, index, weights = seen[0]
        expected = torch.zeros(layer.num_experts).double()
        # All slots in the call, all weights but one of them 0.
        for slot in range(index.shape[1]):
            alone = torch.zeros_like(weights)
            alone[:, slot] = weights[:, slot]
            expected.index_add_(0, index[:, slot], layer.experts(hidden, index, alone).norm(dim=1).double())
    assert torch.allclose(found.contribution[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in every_model() if MODELS.get(name, Tiny()).inputs == "tokens"])
def test_every_family_is_scored_or_refused(name: str) -> None:
    model = tiny_model(name)
    layers = moe_layers(model)
    if any(layer.row.receives not in ("top_k", "dbrx", "skips") for layer in layers):
        with pytest.raises(ValueError, match="so that they can't be asked slot by slot"):
            saliency(model, [])
        return
    found = saliency(model, [batch_of([7, 4])])
    assert found.tokens.tolist() == [11] * len(layers)
    assert found.contribution.isfinite().all() and found.contribution.sum() > 0
    assert (found.contribution[found.count == 0] == 0).all()
    most = torch.tensor([layer.top_k for layer in layers]) * 11
    assert (found.count.sum(dim=1) <= most).all()


def test_hooks_go_when_a_batch_fails() -> None:
    model = tiny_model("mixtral")
    broken = batch_of([4])
    broken.input_ids[0, 0] = 10**6
    with pytest.raises(IndexError):
        saliency(model, [broken])
    assert not any(layer.experts._forward_hooks for layer in moe_layers(model))


def test_tokens_that_skip_the_experts_count_for_none() -> None:
    model = tiny_model("zaya")
    found = saliency(model, [batch_of([12, 12, 12])])
    assert (found.count.sum(dim=1) <= found.tokens * moe_layers(model)[0].top_k).all()
    assert (found.contribution[found.count == 0] == 0).all()


def example() -> Saliency:
    count = torch.tensor([[4, 0, 2, 2], [1, 1, 0, 0]])
    contribution = torch.tensor([[4.0, 0, 6, 3], [5, 1, 0, 0]]).double()
    return Saliency(("a", "b"), (4, 2), torch.tensor([8, 2]), count, count * 0.5, contribution)


def test_which_experts_to_drop() -> None:
    found = example()
    assert found.reap[0].tolist() == [1.0, 0.0, 3.0, 1.5]
    assert found.dropped(2) == [[1, 0], []]
    assert found.dropped(1, "frequency") == [[1, 2, 3], [0]]
    with pytest.raises(ValueError, match="keep is 3, but must be from 1 to 2"):
        found.dropped(3)
    with pytest.raises(ValueError, match="'luck' is no score"):
        found.dropped(1, "luck")


def test_the_file_holds_the_sums_and_the_scores(tmp_path: Path) -> None:
    found = example()
    with safe_open(save_saliency(found, tmp_path / "s.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("reap"), found.reap)
        assert torch.equal(file.get_tensor("count"), found.count)
        assert json.loads(file.metadata()["layers"]) == ["a", "b"]


def test_what_can_not_be_scored_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="no Mixture-of-Experts layer"):
        saliency(torch.nn.Linear(1, 1), [])
    with pytest.raises(ValueError, match="hands its experts no hidden states with indices"):
        saliency(tiny_model("llama4"), [])
