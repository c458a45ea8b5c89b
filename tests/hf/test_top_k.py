"""Another number of experts per token: what the experts then receive, and that everything comes back."""

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import every_model, tiny_inputs, tiny_model
from torch import nn

from moegate.hf import moe_layers
from moegate.hf.layers import MoELayer
from moegate.hf.received import Received, watch
from moegate.hf.top_k import at_top_k

# Two rounds of SparseMixer; top-1 and top-2 in the code itself; one expert a dataset.
FIXED = {"nllb_moe", "phimoe", "switch_transformers", "vitpose_backbone"}
# Its attention has as many experts per token as heads; its feed-forward layers are free.
PARTLY_FIXED = {"jetmoe": "JetMoeMoA"}


def numbers(model: nn.Module) -> dict[str, object]:
    """Every number of every module and configuration."""
    found: dict[str, object] = {"config": model.config.to_dict()}
    for name, module in model.named_modules():
        found[name] = {key: value for key, value in vars(module).items() if type(value) is int}
        if hasattr(module, "config"):
            found[f"{name} config"] = module.config.to_dict()
    return found


def slots(seen: Received, whole: bool) -> list[int]:
    """The slots of each token that hold an expert, or all of them."""
    filled_T = torch.full((1,), seen.expert_index.shape[1]) if whole else (seen.expert_index >= 0).sum(dim=1)
    return [int(count) for count in filled_T]


def experts_per_token(model: nn.Module, layers: list[MoELayer], inputs: dict[str, torch.Tensor]) -> list[set[int]]:
    """How many experts the tokens of each layer go to, those that do nothing included, as the experts receive them."""
    counts: list[set[int]] = [set() for _ in layers]
    handles = [
        watch(layer, lambda seen, found=found, whole=layer.family == "zaya": found.update(slots(seen, whole)))
        for layer, found in zip(layers, counts, strict=True)
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("name", every_model())
def test_the_experts_receive_as_many_as_were_asked_for(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name)
    if name in FIXED:
        with pytest.raises(ValueError, match="lets its experts per token be set"), at_top_k(model, 3):
            pass
        return
    layers = [layer for layer in moe_layers(model) if layer.hash_table is None]
    before, trained = numbers(model), experts_per_token(model, layers, inputs)
    with at_top_k(model, 3):
        found = experts_per_token(model, layers, inputs)
    free = [layer.row.name != PARTLY_FIXED.get(name) for layer in layers]
    assert any(free)
    assert [counts for counts, is_free in zip(found, free, strict=True) if is_free] == [{3}] * sum(free)
    assert numbers(model) == before
    assert experts_per_token(model, layers, inputs) == trained


def test_the_output_is_that_of_a_model_made_with_that_number() -> None:
    model, other = tiny_model("mixtral"), tiny_model("mixtral", num_experts_per_tok=4)
    other.load_state_dict(model.state_dict())
    inputs = tiny_inputs("mixtral")
    with torch.no_grad():
        expected = other(**inputs).logits
        with at_top_k(model, 4):
            assert torch.equal(model(**inputs).logits, expected)
        assert not torch.equal(model(**inputs).logits, expected)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = tiny_model("qwen3_moe")
    before = numbers(model)
    with pytest.raises(RuntimeError, match="inside"), at_top_k(model, 5):
        assert numbers(model) != before
        raise RuntimeError("inside")
    assert numbers(model) == before


@pytest.mark.parametrize("top_k", [0, -1, 9])
def test_a_number_that_does_not_fit_changes_nothing(top_k: int) -> None:
    model = tiny_model("mixtral")
    before = numbers(model)
    with pytest.raises(ValueError, match=f"top_k is {top_k}, but .* from 1 to 8 experts"), at_top_k(model, top_k):
        pass
    assert numbers(model) == before


def test_the_groups_that_are_kept_limit_the_number() -> None:
    model = tiny_model("deepseek_v3", n_group=4, topk_group=2)
    with pytest.raises(ValueError, match="from 1 to 4 experts"), at_top_k(model, 5):
        pass
    layers = moe_layers(model)
    with at_top_k(model, 4):
        assert experts_per_token(model, layers, tiny_inputs("deepseek_v3")) == [{4}] * len(layers)


@pytest.mark.parametrize("top_k", [2.0, "2", True, None])
def test_a_number_is_an_integer(top_k: object) -> None:
    with pytest.raises(TypeError, match="pass an integer"), at_top_k(tiny_model("mixtral"), top_k):  # type: ignore[arg-type]
        pass


def test_a_dense_model_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"No MoE layer of Linear .* none of a known family"),
        at_top_k(nn.Linear(2, 2), 1),
    ):
        pass
