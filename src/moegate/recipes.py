"""Published routers as compositions of parts. Each recipe is a function that returns a ``RoutingRule``.

What a recipe can't hold is named in its docstring: the gate it goes with, a bias, a loss.
"""

from collections.abc import Callable

from moegate.capacity import Capacity
from moegate.estimators import Relaxed, StraightThrough
from moegate.extra import NullExperts, SharedWeights
from moegate.noise import GaussianNoise, GumbelNoise, InputJitter, LearnedNoise
from moegate.parts import did_you_mean
from moegate.rule import RoutingRule
from moegate.scoring import Constant, ReLU, Sigmoid, SoftmaxSelected, SqrtSoftplus
from moegate.selection import (
    Dense,
    EntropyK,
    ExpertChoice,
    GroupedTopK,
    Hash,
    Random,
    SoftSlots,
    SparseMixer,
    Threshold,
    TopK,
    TopP,
)
from moegate.weighting import Weighting


def topk(top_k: int = 2, *, renormalize: bool = True, noise_std: float | None = None) -> RoutingRule:
    """Softmax, top-k, weights renormalised over the chosen; Gaussian noise on the logits if ``noise_std`` is given.

    Example:
        >>> topk(4).selection.top_k
        4
    """
    return RoutingRule(
        selection=TopK(top_k),
        weighting=Weighting(renormalize=renormalize),
        noise=None if noise_std is None else GaussianNoise(noise_std),
    )


def switch(*, capacity_factor: float | None = 1.25, jitter: float = 1e-2) -> RoutingRule:
    """Switch Transformer: top-1, weight = its probability, input jitter, capacity by position (arXiv 2101.03961).

    Goes with ``balance.losses.load_balance`` (coefficient 1e-2). ``capacity_factor=None`` drops nothing.

    Example:
        >>> switch().capacity.factor
        1.25
    """
    return RoutingRule(
        selection=TopK(1),
        noise=InputJitter(jitter) if jitter else None,
        capacity=None if capacity_factor is None else Capacity(capacity_factor),
    )


def gshard(*, capacity_factor: float | None = 1.25) -> RoutingRule:
    """GShard: top-2, renormalised, capacity by position with first choices served first (arXiv 2006.16668).

    The second expert is always taken; GShard's own code takes it at random, in proportion to its weight.

    Example:
        >>> gshard().selection.top_k
        2
    """
    return RoutingRule(
        selection=TopK(2),
        weighting=Weighting(renormalize=True),
        capacity=None if capacity_factor is None else Capacity(capacity_factor),
    )


def noisy_topk(top_k: int = 2) -> RoutingRule:
    """Shazeer's noisy top-k: learned noise on the logits, softmax over the chosen (arXiv 1701.06538).

    Goes with ``NoisyLinearGate`` and the losses ``importance_cv`` and ``load_cv``.

    Example:
        >>> noisy_topk(4).noise.kind
        'learned'
    """
    return RoutingRule(selection=TopK(top_k), score=SoftmaxSelected(), noise=LearnedNoise())


def mixtral(top_k: int = 2) -> RoutingRule:
    """Mixtral: softmax, top-k, renormalised (arXiv 2401.04088).

    Example:
        >>> mixtral()
        RoutingRule(selection=TopK(top_k=2), weighting=Weighting(renormalize=True))
    """
    return RoutingRule(selection=TopK(top_k), weighting=Weighting(renormalize=True))


def qwen3_moe(top_k: int = 8) -> RoutingRule:
    """Qwen3-MoE: softmax, top-8 of 128, renormalised (arXiv 2505.09388).

    Example:
        >>> qwen3_moe().selection.top_k
        8
    """
    return RoutingRule(selection=TopK(top_k), weighting=Weighting(renormalize=True))


def olmoe(top_k: int = 8) -> RoutingRule:
    """OLMoE: softmax, top-8 of 64, not renormalised (arXiv 2409.02060).

    Example:
        >>> olmoe().weighting.renormalize
        False
    """
    return RoutingRule(selection=TopK(top_k))


def st_moe(*, capacity_factor: float | None = 1.25, jitter: float = 1e-2) -> RoutingRule:
    """ST-MoE: top-2, renormalised, input jitter, capacity by position (arXiv 2202.08906).

    The second expert is always taken; ST-MoE's own code takes it at random when its weight is small.

    Goes with ``load_balance`` (1e-2) and ``router_z`` (1e-3).

    Example:
        >>> st_moe().selection.top_k
        2
    """
    return RoutingRule(
        selection=TopK(2),
        weighting=Weighting(renormalize=True),
        noise=InputJitter(jitter) if jitter else None,
        capacity=None if capacity_factor is None else Capacity(capacity_factor),
    )


def nllb_moe(*, places: int | None = 64, num_experts: int = 128, eval_fraction: float = 1.0) -> RoutingRule:
    """NLLB-MoE: top-2, ``places`` an expert, renormalised over what is left, room for all in evaluation (2207.04672).

    ``places=None`` is twice the even share. In evaluation an expert takes ``eval_fraction`` of the tokens. Both experts
    are taken, ``second_expert_policy="all"``; for the other policies replace the selection by ``SecondChoice``.

    Example:
        >>> nllb_moe().capacity.places
        64
    """
    return RoutingRule(
        selection=TopK(2),
        weighting=Weighting(renormalize=True, floor=2.0**-23),
        capacity=Capacity(
            1.0,
            multiple_of=1 if places else 2,
            places=places,
            eval_factor=eval_fraction * num_experts / 2,
            weigh="after",
        ),
    )


def deepseek_v2(top_k: int = 6, *, num_groups: int = 8, groups_kept: int = 3, scale: float = 16.0) -> RoutingRule:
    """DeepSeek-V2: softmax, device-limited top-6 of 160 (groups by their maximum), scaled (arXiv 2405.04434).

    Example:
        >>> deepseek_v2().selection.group_score
        'max'
    """
    selection = GroupedTopK(top_k, num_groups=num_groups, groups_kept=groups_kept, group_score="max")
    return RoutingRule(selection=selection, weighting=Weighting(scale=scale))


def deepseek_v3(top_k: int = 8, *, num_groups: int = 8, groups_kept: int = 4, scale: float = 2.5) -> RoutingRule:
    """DeepSeek-V3: sigmoid, node-limited top-8 of 256 (group = its top two), renormalised, scaled (arXiv 2412.19437).

    Goes with a selection bias that a ``SignBias`` controller updates: ``MoE(..., correction_bias=True)``.

    Example:
        >>> deepseek_v3().weighting.scale
        2.5
    """
    return RoutingRule(
        selection=GroupedTopK(top_k, num_groups=num_groups, groups_kept=groups_kept, group_score="top2_sum"),
        score=Sigmoid(),
        weighting=Weighting(renormalize=True, scale=scale),
    )


def deepseek_v4(top_k: int = 6, *, scale: float = 1.5) -> RoutingRule:
    """DeepSeek-V4's learned layers: sqrt-softplus, biased top-k, renormalised, scaled (arXiv 2606.19348).

    Example:
        >>> deepseek_v4().score.kind
        'sqrt_softplus'
    """
    return RoutingRule(selection=TopK(top_k), score=SqrtSoftplus(), weighting=Weighting(renormalize=True, scale=scale))


def gpt_oss(top_k: int = 4) -> RoutingRule:
    """gpt-oss: top-4 of the logits, then a softmax over the chosen. Its gate has a trained bias.

    Example:
        >>> gpt_oss().score.kind
        'softmax_selected'
    """
    return RoutingRule(selection=TopK(top_k), score=SoftmaxSelected())


def phimoe(top_k: int = 2, *, epsilon: float = 1e-2) -> RoutingRule:
    """Phi-3.5-MoE: SparseMixer top-2 of 16, drawn in training with Heun's estimate of the gradient (arXiv 2409.12136).

    Example:
        >>> phimoe().selection.epsilon
        0.01
    """
    return RoutingRule(selection=SparseMixer(top_k, epsilon))


def zaya(top_k: int = 1) -> RoutingRule:
    """ZAYA: softmax over the experts and one null class, biased top-1, not renormalised. Goes with a selection bias.

    Example:
        >>> zaya().extra
        NullExperts(count=1)
    """
    return RoutingRule(selection=TopK(top_k), extra=NullExperts(1))


def inkling(top_k: int = 6, *, num_shared: int = 2, scale: float = 8.0) -> RoutingRule:
    """Inkling: sigmoid, biased top-6, renormalised over the chosen and the shared experts together, scaled.

    Goes with ``MoE(..., num_shared_experts=num_shared)`` and a selection bias; its learned scale of all weights is an
    ``expert_scale``.

    Example:
        >>> inkling().extra
        SharedWeights(count=2)
    """
    return RoutingRule(
        selection=TopK(top_k),
        score=Sigmoid(),
        weighting=Weighting(renormalize=True, scale=scale),
        extra=SharedWeights(num_shared),
    )


def llama4(top_k: int = 1) -> RoutingRule:
    """Llama 4: top-1, sigmoid weight on the expert's *input*. Goes with one shared expert.

    Example:
        >>> llama4().weighting.apply_to
        'input'
    """
    return RoutingRule(selection=TopK(top_k), score=Sigmoid(), weighting=Weighting(apply_to="input"))


def expert_choice(*, capacity_factor: float = 2.0, scope: str = "batch") -> RoutingRule:
    """Expert choice: every expert takes its best tokens (arXiv 2202.09368). Not causal.

    Example:
        >>> expert_choice(capacity_factor=1.0).selection.capacity_factor
        1.0
    """
    return RoutingRule(selection=ExpertChoice(capacity_factor, scope))


def soft_moe(*, slots_per_expert: int = 1, scope: str = "sequence") -> RoutingRule:
    """Soft MoE: slots of mixed tokens, dense and differentiable (arXiv 2308.00951). Not causal.

    The gate gives ``num_experts · slots_per_expert`` logits.

    Example:
        >>> soft_moe(slots_per_expert=4).selection.slots_per_expert
        4
    """
    return RoutingRule(selection=SoftSlots(slots_per_expert, scope))


def dense() -> RoutingRule:
    """Every token to every expert, weighted by the softmax: soft routing without sparsity (Jacobs et al. 1991).

    Example:
        >>> dense().selection.kind
        'dense'
    """
    return RoutingRule(selection=Dense())


def hash_routing(top_k: int = 1, *, seed: int = 0) -> RoutingRule:
    """Hash layers: the token id decides, with equal weights (arXiv 2106.04426). Needs ``token_ids``.

    Example:
        >>> hash_routing().score.kind
        'constant'
    """
    return RoutingRule(selection=Hash(top_k, seed), score=Constant(), weighting=Weighting(renormalize=True))


def random_routing(top_k: int = 2) -> RoutingRule:
    """Experts at random, with equal weights (THOR, arXiv 2110.04260): the baseline for learned routing.

    Example:
        >>> random_routing(2).selection.top_k
        2
    """
    return RoutingRule(selection=Random(top_k), score=Constant(), weighting=Weighting(renormalize=True))


def top_p(p: float = 0.6, *, max_k: int | None = None) -> RoutingRule:
    """As many experts as cover the probability ``p`` (arXiv 2403.07652). Goes with the loss ``token_entropy``.

    Example:
        >>> top_p(0.4).selection.p
        0.4
    """
    return RoutingRule(selection=TopP(p, max_k), weighting=Weighting(renormalize=False))


def entropy_k(threshold: float = 0.5, *, max_k: int = 4) -> RoutingRule:
    """One expert below the entropy ``threshold`` (nats), two below twice that, ``max_k`` above.

    Example:
        >>> entropy_k(0.7).selection.thresholds
        (0.7, 1.4)
    """
    selection = EntropyK(thresholds=(threshold, 2 * threshold), counts=(1, min(2, max_k), max_k))
    return RoutingRule(selection=selection)


def relu(threshold: float = 0.0) -> RoutingRule:
    """ReLU routing: every expert with a positive logit, weighted by it; possibly none (ReMoE, arXiv 2412.14711).

    Example:
        >>> relu().selection.min_k
        0
    """
    return RoutingRule(selection=Threshold(threshold, min_k=0), score=ReLU())


def gumbel_topk(top_k: int = 2, *, temperature: float = 1.0, relaxed: bool = False) -> RoutingRule:
    """Experts sampled without replacement by Gumbel noise; ``relaxed`` makes the choice differentiable in training.

    The relaxed form runs every expert in training; anneal it with ``rule.at_temperature``.

    Example:
        >>> gumbel_topk(2, temperature=0.5, relaxed=True).estimator
        Relaxed(temperature=0.5)
    """
    return RoutingRule(
        selection=TopK(top_k),
        weighting=Weighting(renormalize=top_k > 1 or relaxed),
        noise=GumbelNoise(),
        estimator=Relaxed(temperature) if relaxed else None,
    )


def straight_through(top_k: int = 2, *, temperature: float = 1.0) -> RoutingRule:
    """Hard, renormalised top-k forward; the gradient of the softmax backward (arXiv 1308.3432).

    Example:
        >>> straight_through(1).estimator.kind
        'straight_through'
    """
    return RoutingRule(
        selection=TopK(top_k), weighting=Weighting(renormalize=True), estimator=StraightThrough(temperature)
    )


_RECIPES: tuple[Callable[..., RoutingRule], ...] = (
    topk,
    switch,
    gshard,
    noisy_topk,
    mixtral,
    qwen3_moe,
    olmoe,
    st_moe,
    nllb_moe,
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    gpt_oss,
    phimoe,
    zaya,
    inkling,
    llama4,
    expert_choice,
    soft_moe,
    dense,
    hash_routing,
    random_routing,
    top_p,
    entropy_k,
    relu,
    gumbel_topk,
    straight_through,
)
__all__ = [recipe.__name__ for recipe in _RECIPES] + ["get", "names"]


def names() -> list[str]:
    """The names of all recipes.

    Example:
        >>> "mixtral" in names()
        True
    """
    return [recipe.__name__ for recipe in _RECIPES]


def get(name: str) -> Callable[..., RoutingRule]:
    """The recipe of a name.

    Raises:
        ValueError: when there is none; the message names the nearest.

    Example:
        >>> get("mixtrall")
        Traceback (most recent call last):
        ...
        ValueError: Unknown recipe 'mixtrall'. Did you mean 'mixtral'?
    """
    table = {recipe.__name__: recipe for recipe in _RECIPES}
    if name not in table:
        raise ValueError(f"Unknown recipe {name!r}.{did_you_mean(name, table)}")
    return table[name]
