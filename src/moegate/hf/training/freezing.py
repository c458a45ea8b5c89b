"""Freeze the routers of a model, or train nothing but them."""

from torch import Tensor, nn

from moegate.hf.layers import MoELayer, moe_layers

__all__ = ["freeze_routers", "is_bias", "router_is_frozen", "train_routers_only"]


def freeze_routers(model: nn.Module) -> list[str]:
    """Take the routers out of training; returns the names of their parameters.

    Sets ``requires_grad`` of every parameter of the gates to False. A bias update leaves the bias of a frozen router
    alone, so the routing changes no more than the hidden states do. Call it before the optimizer is made: what an
    optimizer already holds may still decay.

    Raises:
        ValueError: the model has no MoE layer.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> freeze_routers(model)
        ['model.layers.0.mlp.gate.weight']
    """
    names = []
    for layer in _layers(model):
        for name, parameter in layer.gate.named_parameters():
            parameter.requires_grad_(False)
            names.append(f"{layer.name}.{layer.row.gate}.{name}")
    return names


def train_routers_only(model: nn.Module) -> list[str]:
    """Take everything but the routers out of training; returns the names of the parameters that train.

    A selection bias stays out, whether it is a parameter or not: selection gives it no gradient.

    Raises:
        ValueError: the model has no MoE layer.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> train_routers_only(model)
        ['model.layers.0.mlp.gate.weight']
    """
    layers = _layers(model)
    model.requires_grad_(False)
    names = []
    for layer in layers:
        for name, parameter in layer.gate.named_parameters():
            if not is_bias(parameter, layer):
                parameter.requires_grad_(True)
                names.append(f"{layer.name}.{layer.row.gate}.{name}")
    return names


def router_is_frozen(layer: MoELayer) -> bool:
    """Whether no parameter of a layer's gate trains; a selection bias among them doesn't count.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> router_is_frozen(moe_layers(model)[0])
        False
    """
    return not any(parameter.requires_grad for parameter in layer.gate.parameters() if not is_bias(parameter, layer))


def is_bias(parameter: Tensor, layer: MoELayer) -> bool:
    """Whether a parameter holds the layer's selection bias, in whatever shape.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        >>> is_bias(next(model.parameters()), moe_layers(model)[0])
        False
    """
    bias = layer.bias
    return bias is not None and parameter.untyped_storage().data_ptr() == bias.untyped_storage().data_ptr()


def _layers(model: nn.Module) -> list[MoELayer]:
    layers = moe_layers(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer that moegate knows: `moegate hf families` lists what it knows."
        )
    return layers
