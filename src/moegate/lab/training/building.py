"""From a configuration to a model: routed, with its gates frozen, or dense with the same active FLOPs."""

import torch
from torch import nn

from moegate.experts import SharedExperts
from moegate.gates import LinearGate, NoisyLinearGate
from moegate.lab.models import ByteLM, FeedForwardFactory, ImageClassifier
from moegate.lab.training.balancing import ControllerSettings, balance_strategy
from moegate.lab.training.config import TrainConfig
from moegate.lab.training.routers import combination_problem, largest_k, make_rule, num_logits, router_spec
from moegate.layer import MoE


def build_model(config: TrainConfig) -> nn.Module:
    """Return the model of a configuration, its weights drawn from PyTorch's global generator.

    Raises:
        ValueError: a combination of settings that makes no sense.

    Example:
        >>> model = build_model(TrainConfig.create(task="image", num_layers=1))
        >>> type(model).__name__, len(routed_layers(model))
        ('ImageClassifier', 1)
    """
    problem = combination_problem(config.to_dict(), config.task, config.num_experts)
    if problem is not None:
        raise ValueError(problem)
    feed_forward = _dense_factory(config) if config.control == "dense" else _routed_factory(config)
    model: nn.Module
    if config.task == "image":
        model = ImageClassifier(config.hidden_size, config.num_layers, feed_forward)
    else:
        model = ByteLM(config.hidden_size, config.num_layers, config.num_heads, feed_forward, config.sequence_length)
    if config.control == "frozen":
        for layer in routed_layers(model):
            layer.gate.requires_grad_(False)
    return model


def _dense_factory(config: TrainConfig) -> FeedForwardFactory:
    # K experts that every token goes to: a plain SwiGLU network of width K · F, without routing.
    return lambda layer: SharedExperts(config.hidden_size, config.top_k * config.intermediate_size)


def _routed_factory(config: TrainConfig) -> FeedForwardFactory:
    spec, rule = router_spec(config.router), make_rule(config)
    biased = balance_strategy(config.balance).controller is not None

    def make(layer: int) -> nn.Module:
        kind = NoisyLinearGate if spec.learned_noise else LinearGate
        num_biased = rule.num_classes(config.num_experts) if biased else 0
        gate = kind(config.hidden_size, num_logits(config, rule), correction_bias=num_biased)
        return MoE(
            config.hidden_size,
            config.intermediate_size,
            config.num_experts,
            rule,
            gate=gate,
            num_shared_experts=0 if rule.extra is None else rule.extra.num_shared,
        )

    return make


def routed_layers(model: nn.Module) -> list[MoE]:
    """Return the MoE layers of a model, first to last.

    Example:
        >>> routed_layers(nn.Linear(2, 2))
        []
    """
    return [module for module in model.modules() if isinstance(module, MoE)]


def build_controllers(config: TrainConfig, model: nn.Module) -> nn.ModuleList:
    """Return a balance controller for each routed layer, or none if the strategy is a loss.

    Example:
        >>> config = TrainConfig.create(task="image", balance="sign_bias")
        >>> len(build_controllers(config, build_model(config)))
        2
    """
    make = balance_strategy(config.balance).controller
    if make is None:
        return nn.ModuleList()
    settings = ControllerSettings(config.num_experts, largest_k(config), config.controller_rate)
    return nn.ModuleList(make(settings) for _ in routed_layers(model))


def parameter_counts(config: TrainConfig, model: nn.Module) -> tuple[int, int]:
    """Return how many parameters there are, and how many work on one token.

    Experts count with the share K / E that a token visits; K is that of the rule, all experts for soft routing, and
    an average of routers without a fixed K isn't known beforehand: they count with their largest.

    Example:
        >>> config = TrainConfig.create(task="image", top_k=8)
        >>> total, active = parameter_counts(config, build_model(config))
        >>> total == active
        True
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for layer in routed_layers(model) for parameter in layer.experts.parameters())
    return total, total - experts + experts * largest_k(config) // config.num_experts


def anneal(model: nn.Module, temperature: float) -> None:
    """Set the temperature of the rules of all routed layers that have one.

    Example:
        >>> config = TrainConfig.create(task="image", router="gumbel")
        >>> model = build_model(config)
        >>> anneal(model, 0.25)
        >>> routed_layers(model)[0].rule.estimator.temperature
        0.25
    """
    for layer in routed_layers(model):
        layer.rule = layer.rule.at_temperature(temperature)


def seed_everything(seed: int) -> torch.Generator:
    """Seed PyTorch's global generator, for initial weights, and return one for the routers' noise.

    Example:
        >>> first = seed_everything(3)
        >>> torch.rand(1, generator=first) == torch.rand(1, generator=seed_everything(3))
        tensor([True])
    """
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed + 1)
