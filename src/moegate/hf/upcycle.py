"""``upcycle``: a dense model becomes a Mixture-of-Experts model of transformers that starts where it stood.

The feed-forward network of each layer is copied into every expert, and a new router shares the tokens out. As the
weights of a token's experts sum to one and the experts are alike, the model computes what the dense one did, until
training makes them differ.
"""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moegate.config import rule_from_config
from moegate.parts import check_integer
from moegate.rule import RoutingRule

__all__ = ["upcycle"]


@dataclass(frozen=True)
class _Target:
    """What a dense architecture becomes.

    Attributes:
        model: the class of the Mixture-of-Experts model in transformers.
        layers: whether single layers may stay dense.
        shared: whether each block also has an expert that every token goes to.
    """

    model: str
    layers: bool
    shared: bool = False


_TARGETS: dict[str, _Target] = {
    "llama": _Target("MixtralForCausalLM", layers=False),
    "mistral": _Target("MixtralForCausalLM", layers=False),
    "qwen2": _Target("Qwen2MoeForCausalLM", layers=True, shared=True),
    "qwen3": _Target("Qwen3MoeForCausalLM", layers=True),
}
"""By the ``model_type`` of the dense model: the architecture that is the same but for its feed-forward networks."""


@dataclass(frozen=True)
class _Plan:
    """How experts are made of a network."""

    num_experts: int
    top_k: int
    split: int
    noise: float
    reinitialize: float
    generator: torch.Generator


def upcycle(  # noqa: PLR0913 - the sizes, and one number for each published variant
    dense_model: nn.Module,
    num_experts: int,
    top_k: int,
    *,
    rule: RoutingRule | None = None,
    split: int = 1,
    noise: float = 0.0,
    reinitialize: float = 0.0,
    layers: Iterable[int] | None = None,
    seed: int = 0,
) -> Any:
    """Sparse upcycling: a Mixture-of-Experts model whose experts are copies of a dense model's feed-forward networks.

    Llama and Mistral become Mixtral, Qwen2 becomes Qwen2-MoE, Qwen3 becomes Qwen3-MoE: ``save_pretrained`` writes what
    ``from_pretrained`` reads without moegate. The dense model is left as it is. Without ``noise`` and ``reinitialize``
    the new model gives its logits, to rounding. Qwen2-MoE has a shared expert too: it and the routed ones are copies
    that give one half each.

    Args:
        dense_model: a ``LlamaForCausalLM``, ``MistralForCausalLM``, ``Qwen2ForCausalLM`` or ``Qwen3ForCausalLM``.
        num_experts: ``E``, experts a layer in the new model.
        top_k: ``K``, experts a token goes to; with 1 of them a ``UserWarning`` says that the router can't learn.
        rule: how the new model shall route; None is a softmax whose chosen weights sum to one. Only what the target's
            configuration can say is possible; route by any other with ``moegate.hf.swap``.
        split: ``G`` cuts the network into that many experts of ``F / G`` (fine-grained), for ``E / G`` copies; the
            routers start so that a token takes all ``G`` parts of a copy, and the parts are scaled to give the whole.
        noise: adds to each expert's weights normal noise of this share of their standard deviation.
        reinitialize: of each expert, draws this share of the inner neurons anew, with the mean and the standard
            deviation of their weights (Drop-Upcycling).
        layers: the layers to convert, where the target may mix them (Qwen); None for all.
        seed: of the routers and of the noise; PyTorch's own generator is left alone.

    Returns:
        The new model, in the types and on the device of the dense one, in its mode.

    Raises:
        TypeError: when the model is of none of these classes.
        ValueError: when sizes do not go together, or the architecture can't express what is asked.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
        >>> dense = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()
        >>> sparse = upcycle(dense, num_experts=4, top_k=2)
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> type(sparse).__name__, torch.allclose(sparse(tokens).logits, dense(tokens).logits, atol=1e-5)
        ('MixtralForCausalLM', True)

    Source:
        Sparse Upcycling (arXiv 2212.05055); fine-grained with virtual groups: arXiv 2410.07524; Drop-Upcycling:
        arXiv 2502.19261; noise: Qwen1.5-MoE.
    """
    import transformers

    target = _target(dense_model)
    plan = _checked_plan(dense_model, num_experts, top_k, split, noise, reinitialize, seed)
    chosen = _chosen_layers(dense_model, target, layers)
    model_class = getattr(transformers, target.model)
    config = _config(dense_model, model_class.config_class, plan, chosen)
    _check_rule(rule, config, target)
    if plan.top_k == 1 < plan.num_experts:
        warnings.warn(
            "With top_k=1 the one weight of a token is 1 whatever the router says, so the loss does not teach it: pass "
            "top_k=2 or more, or train with a balance loss alone.",
            UserWarning,
            stacklevel=2,
        )
    state: dict[str, Tensor] = {}
    for name, tensor in dense_model.state_dict().items():
        if not any(name.startswith(f"model.layers.{layer}.mlp.") for layer in chosen):
            state[name] = tensor.detach().clone()
    for layer in chosen:
        parts = _experts(dense_model.get_submodule(f"model.layers.{layer}.mlp"), plan, target)
        state |= {f"model.layers.{layer}.mlp.{name}": tensor for name, tensor in parts.items()}
    model = _built(model_class, config, state)
    model.generation_config = copy.deepcopy(dense_model.generation_config)
    return model.to(next(dense_model.parameters()).device).train(dense_model.training)


def _built(model_class: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """The model of a configuration with these tensors, and without weights that are drawn only to be overwritten."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        told = {"config": config, "state_dict": state, "dtype": next(iter(state.values())).dtype}
        with torch.random.fork_rng(devices=[]):
            model, info = model_class.from_pretrained(None, **told, output_loading_info=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]), info
    return model


def _target(dense_model: nn.Module) -> _Target:
    model_type = getattr(getattr(dense_model, "config", None), "model_type", None)
    if model_type in _TARGETS and type(dense_model).__name__.endswith("ForCausalLM"):
        return _TARGETS[model_type]
    known = ", ".join(f"{name} ({target.model.removesuffix('ForCausalLM')})" for name, target in _TARGETS.items())
    raise TypeError(
        f"{type(dense_model).__name__} has no Mixture-of-Experts architecture to become: pass a causal language model "
        f"of one of {known}."
    )


def _checked_plan(  # noqa: PLR0917 - the numbers of ``upcycle``
    dense_model: Any, num_experts: int, top_k: int, split: int, noise: float, reinitialize: float, seed: int
) -> _Plan:
    for name, value in (("num_experts", num_experts), ("top_k", top_k), ("split", split)):
        check_integer(name, value, least=1)
    if top_k > num_experts:
        raise ValueError(f"top_k={top_k} exceeds num_experts={num_experts}: choose at most as many.")
    width = dense_model.config.intermediate_size
    for name, value in (("num_experts", num_experts), ("top_k", top_k), ("intermediate_size", width)):
        if value % split:
            raise ValueError(f"split={split} must divide {name}={value}: each copy is cut into {split} experts.")
    if not 0.0 <= reinitialize <= 1.0 or not 0.0 <= noise < float("inf"):
        raise ValueError(f"noise={noise} must be at least 0 and reinitialize={reinitialize} from 0 to 1.")
    for parameter in dense_model.parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            raise ValueError(
                "The dense model must be loaded in a floating type, neither quantized nor offloaded; got "
                f"{parameter.dtype} on {parameter.device}."
            )
    return _Plan(num_experts, top_k, split, noise, reinitialize, torch.Generator().manual_seed(seed))


def _chosen_layers(dense_model: Any, target: _Target, layers: Iterable[int] | None) -> list[int]:
    number = dense_model.config.num_hidden_layers
    chosen = list(range(number)) if layers is None else sorted(set(layers))
    if not chosen or not all(type(layer) is int and 0 <= layer < number for layer in chosen):
        raise ValueError(f"layers={layers!r} must be some of 0 to {number - 1}.")
    if len(chosen) < number and not target.layers:
        raise ValueError(
            f"{target.model} has experts in every layer: leave layers None (Qwen models may keep some dense)."
        )
    return chosen


def _config(dense_model: Any, kind: Any, plan: _Plan, chosen: list[int]) -> Any:
    """The target's configuration, with everything that it shares with the dense model's."""
    dense = dense_model.config
    _check_expressible(dense, kind)
    known = {name: getattr(dense, name) for name in kind().to_dict() if hasattr(dense, name)}
    for name in ("model_type", "architectures", "transformers_version", "layer_types", "attribute_map", "id2label"):
        known.pop(name, None)
    if getattr(dense, "head_dim", None) is not None:
        known["head_dim"] = dense.head_dim  # also read where the configuration does not declare it
    width = dense.intermediate_size // plan.split
    sizes: dict[str, Any] = {
        "num_experts_per_tok": plan.top_k,
        "num_local_experts": plan.num_experts,
        "norm_topk_prob": True,
    }
    if kind.model_type == "mixtral":
        sizes |= {"intermediate_size": width}
        sizes.pop("norm_topk_prob")
    else:
        dense_layers = [layer for layer in range(dense.num_hidden_layers) if layer not in chosen]
        sizes |= {"moe_intermediate_size": width, "mlp_only_layers": dense_layers, "decoder_sparse_step": 1}
    if kind.model_type == "qwen2_moe":
        sizes |= {
            "num_experts": sizes.pop("num_local_experts"),
            "shared_expert_intermediate_size": dense.intermediate_size,
        }
    return kind(**known | sizes)


def _check_expressible(dense: Any, kind: Any) -> None:
    """Raises where the dense model has something that the target's architecture has no place for."""
    target = kind()
    if getattr(dense, "mlp_bias", False):
        raise ValueError(
            f"The dense model's feed-forward networks have biases, which {kind.__name__} has no place for."
        )
    if getattr(dense, "attention_bias", False) and not hasattr(target, "attention_bias"):
        raise ValueError(f"The dense model's attention has biases, which {kind.__name__} has no place for.")
    layer_types = set(getattr(dense, "layer_types", None) or ())
    if len(layer_types) > 1 and not hasattr(target, "layer_types"):
        raise ValueError(f"The dense model mixes {sorted(layer_types)}, which {kind.__name__} has no place for.")


def _check_rule(rule: RoutingRule | None, config: Any, target: _Target) -> None:
    if rule is None:
        return
    if not isinstance(rule, RoutingRule):
        raise TypeError(f"rule must be a RoutingRule or None, got {rule!r}.")
    own = rule_from_config(config)
    if rule != own:
        raise ValueError(
            f"{target.model} with these sizes routes by {own!r}, and its configuration can't say {rule!r}: leave rule "
            "None, and route by yours with moegate.hf.swap(model, router=rule)."
        )


def _experts(mlp: Any, plan: _Plan, target: _Target) -> dict[str, Tensor]:
    """The tensors of a block out of those of a dense network: ``gate [F, D]``, ``up [F, D]`` and ``down [D, F]``."""
    gate_FD, up_FD, down_DF = (getattr(mlp, f"{name}_proj").weight.detach() for name in ("gate", "up", "down"))
    width, hidden = gate_FD.shape
    share = 0.5 if target.shared else 1.0
    parts, copies = plan.split, plan.num_experts // plan.split
    # Part g of every copy holds the g-th of the inner neurons; the weights of its G parts add up to those of one copy.
    gate = gate_FD.view(parts, width // parts, hidden).repeat(copies, 1, 1)
    up = up_FD.view(parts, width // parts, hidden).repeat(copies, 1, 1)
    down = down_DF.view(hidden, parts, width // parts).transpose(0, 1).repeat(copies, 1, 1)
    _draw_neurons_anew(gate, up, down, plan)
    for weight in (gate, up, down):
        _add_noise(weight, plan)
    tensors = {"experts.gate_up_proj": torch.cat([gate, up], dim=1), "experts.down_proj": down * (parts * share)}
    router_CD = torch.empty(copies, hidden).normal_(std=0.02, generator=plan.generator)
    tensors["gate.weight"] = router_CD.repeat_interleave(parts, dim=0).to(gate)
    if target.shared:
        tensors |= {f"shared_expert.{name}": tensor.clone() for name, tensor in mlp.state_dict().items()}
        # Its gate starts at sigmoid(0), one half.
        tensors["shared_expert_gate.weight"] = torch.zeros(1, hidden).to(gate)
    return tensors


def _draw_neurons_anew(gate: Tensor, up: Tensor, down: Tensor, plan: _Plan) -> None:
    """Draws a share of each expert's inner neurons from a normal with the moments of what they replace, in place."""
    number = round(plan.reinitialize * gate.shape[1])
    for expert in range(plan.num_experts if number else 0):
        drawn = torch.randperm(gate.shape[1], generator=plan.generator)[:number].to(gate.device)
        for weight in (gate[expert], up[expert], down[expert].mT):
            old = weight[drawn].float()
            fresh = torch.empty(old.shape).normal_(generator=plan.generator).to(old.device)
            weight[drawn] = (fresh * old.std(correction=0) + old.mean()).to(weight.dtype)


def _add_noise(weight: Tensor, plan: _Plan) -> None:
    for expert in weight if plan.noise else ():
        fresh = torch.empty(expert.shape).normal_(generator=plan.generator).to(expert)
        expert.add_(fresh, alpha=plan.noise * expert.float().std().item())
