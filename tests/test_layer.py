"""The layer: parity with transformers, compilation, checkpointing, precision, masks and bad input."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from triton_support import ON_TRITON

import moegate
from moegate import MoE, recipes
from moegate.dispatch import METHODS
from moegate.gates import LinearGate, MLPGate, NoisyLinearGate, ResidualGate
from moegate.records import Routing
from moegate.rule import RoutingRule

HIDDEN, WIDTH, NUM_EXPERTS = 16, 12, 8
RULES: dict[str, RoutingRule] = {name: recipes.get(name)() for name in recipes.names()} | {
    "qwen3_moe": recipes.qwen3_moe(3),
    "olmoe": recipes.olmoe(3),
    "deepseek_v2": recipes.deepseek_v2(3, num_groups=4, groups_kept=2),
    "deepseek_v3": recipes.deepseek_v3(3, num_groups=4, groups_kept=2),
    "soft_moe": recipes.soft_moe(slots_per_expert=2),
    "relaxed": recipes.gumbel_topk(2, relaxed=True),
    "tight capacity": recipes.gshard(capacity_factor=0.5),
    "reroute": recipes.gshard().replace(capacity=moegate.Capacity(1.0, overflow="reroute")),
}
# In the interpreter, these: a rule for each way through the layer and its kernels.
ON_KERNELS = (
    "mixtral",
    "deepseek_v3",
    "llama4",
    "switch",
    "top_p",
    "expert_choice",
    "soft_moe",
    "tight capacity",
    "reroute",
)
TESTED = {name: RULES[name] for name in ON_KERNELS} if ON_TRITON else RULES
every_rule = pytest.mark.parametrize("rule", TESTED.values(), ids=TESTED.keys())


def layer(rule: RoutingRule, **options: Any) -> MoE:
    if rule.noise is not None and rule.noise.kind == "learned":
        options.setdefault("gate", NoisyLinearGate(HIDDEN, NUM_EXPERTS))
    if rule.extra is not None and rule.extra.num_shared:
        options["num_shared_experts"] = rule.extra.num_shared
    return MoE(HIDDEN, WIDTH, NUM_EXPERTS, rule, **options)


def inputs(*shape: int) -> dict[str, Tensor]:
    return {"hidden": torch.randn(*shape, HIDDEN), "token_ids": torch.arange(torch.Size(shape).numel()).view(shape)}


# --- parity with transformers ------------------------------------------------------------------------------------


def randomized(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for values in [*module.parameters(), *module.buffers()]:
            values.normal_(std=0.3)
    return module.eval()


def hugging_face(model: str, block: str, config: str, **sizes: Any) -> tuple[nn.Module, RoutingRule]:
    """A block of transformers with random weights, and the rule that its configuration gives."""
    modeling = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    settings = getattr(modeling, config)(hidden_size=HIDDEN, experts_implementation="eager", **sizes)
    return randomized(getattr(modeling, block)(settings)), RoutingRule.from_config(settings)


BLOCKS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "block": "MixtralSparseMoeBlock",
        "config": "MixtralConfig",
        "intermediate_size": WIDTH,
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "block": "Qwen3MoeSparseMoeBlock",
        "config": "Qwen3MoeConfig",
        "moe_intermediate_size": WIDTH,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "olmoe": {
        "block": "OlmoeSparseMoeBlock",
        "config": "OlmoeConfig",
        "intermediate_size": WIDTH,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 3,
    },
    "deepseek_v3": {
        "block": "DeepseekV3MoE",
        "config": "DeepseekV3Config",
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
    },
    "deepseek_v2": {
        "block": "DeepseekV2Moe",
        "config": "DeepseekV2Config",
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "n_shared_experts": 1,
        "num_attention_heads": 2,
    },
    "glm4_moe": {
        "block": "Glm4MoeMoE",
        "config": "Glm4MoeConfig",
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
    },
}


def as_ours(block: nn.Module, rule: RoutingRule, num_shared_experts: int) -> MoE:
    """Our layer with the block's state dict, key by key: the layouts are the same."""
    state = block.state_dict()
    ours = MoE(
        HIDDEN,
        WIDTH,
        NUM_EXPERTS,
        rule,
        num_shared_experts=num_shared_experts,
        correction_bias="gate.e_score_correction_bias" in state,
    )
    ours.load_state_dict(state)
    return ours.eval()


@pytest.mark.parametrize("model", sorted(BLOCKS))
@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_transformers_give_the_same_output(model: str, method: str) -> None:
    sizes = dict(BLOCKS[model])
    block, rule = hugging_face(model, sizes.pop("block"), sizes.pop("config"), **sizes)
    ours = as_ours(block, rule, sizes.get("n_shared_experts", 0))
    ours.dispatch = method
    hidden = torch.randn(3, 7, HIDDEN)
    with torch.no_grad():
        expected = block(hidden.clone())
        out, _ = ours(hidden)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_llama4_text_moe() -> None:
    block, rule = hugging_face(
        "llama4",
        "Llama4TextMoe",
        "Llama4TextConfig",
        intermediate_size=WIDTH,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=1,
    )
    ours = MoE(HIDDEN, WIDTH, NUM_EXPERTS, rule, num_shared_experts=1).eval()
    state = block.state_dict()
    renamed = {
        "gate.weight": state["router.weight"],
        "experts.gate_up_proj": state["experts.gate_up_proj"].mT,
        "experts.down_proj": state["experts.down_proj"].mT,
    } | {name.replace("shared_expert", "shared_experts"): value for name, value in state.items() if "shared" in name}
    ours.load_state_dict(renamed)
    hidden = torch.randn(3, 7, HIDDEN)
    with torch.no_grad():
        expected, _ = block(hidden)
        out, _ = ours(hidden)
    torch.testing.assert_close(out.view(-1, HIDDEN), expected, rtol=1e-5, atol=1e-5)


def test_the_router_of_gpt_oss() -> None:
    router, rule = hugging_face(
        "gpt_oss", "GptOssTopKRouter", "GptOssConfig", num_local_experts=NUM_EXPERTS, num_experts_per_tok=3
    )
    ours = MoE(HIDDEN, WIDTH, NUM_EXPERTS, rule, gate=LinearGate(HIDDEN, NUM_EXPERTS, bias=True)).eval()
    ours.gate.load_state_dict(router.state_dict())
    hidden = torch.randn(40, HIDDEN)
    with torch.no_grad():
        _, weights, index = router(hidden)
        routing = ours.route(hidden)
    assert routing.expert_index.equal(index)
    torch.testing.assert_close(routing.weights, weights, rtol=1e-5, atol=1e-6)


# --- the layer as a function -------------------------------------------------------------------------------------


def by_hand(moe: MoE, hidden: Tensor, routing: Routing) -> Tensor:
    """A loop over the assignments, on the output side."""
    out = torch.zeros_like(hidden)
    for token, expert, weight in zip(*routing.edges(), strict=True):
        gate, up = (moe.experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
        out[token] += weight * (moe.experts.down_proj[expert] @ (nn.functional.silu(gate) * up))
    shared, weights = moe.shared_experts, routing.shared_weights
    if shared is None or weights is None:
        return out if shared is None else out + shared(hidden)
    for number in range(weights.shape[1]):
        of_one = slice(number * WIDTH, (number + 1) * WIDTH)
        gate, up = (hidden @ layer.weight[of_one].T for layer in (shared.gate_proj, shared.up_proj))
        out = out + weights[:, number, None] * ((nn.functional.silu(gate) * up) @ shared.down_proj.weight[:, of_one].T)
    return out


@pytest.mark.parametrize("name", sorted(set(TESTED) - {"soft_moe", "llama4"}))
@pytest.mark.parametrize("training", [False, True])
def test_against_a_loop(name: str, training: bool) -> None:
    moe = layer(RULES[name], num_shared_experts=1).double().train(training)
    tokens = inputs(9)
    tokens["hidden"] = tokens["hidden"].double()
    out, routing = moe(**tokens, generator=3)
    torch.testing.assert_close(out, by_hand(moe, tokens["hidden"], routing), rtol=1e-10, atol=1e-12)


@every_rule
@pytest.mark.parametrize("training", [False, True])
def test_the_methods_agree_in_outputs_and_gradients(rule: RoutingRule, training: bool) -> None:
    moe = layer(rule).double().train(training)
    tokens = inputs(2, 6)
    tokens["hidden"] = tokens["hidden"].double().requires_grad_()
    results = []
    for method in METHODS:
        moe.dispatch = method
        out, _ = moe(**tokens, generator=3)
        targets = [tokens["hidden"], *(p for name, p in moe.named_parameters() if "previous" not in name)]
        results.append((out, *torch.autograd.grad(out.square().sum(), targets, allow_unused=True)))
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@every_rule
@pytest.mark.parametrize("method", METHODS)
def test_padding_reaches_nothing(rule: RoutingRule, method: str) -> None:
    moe, tokens = layer(rule, dispatch=method), inputs(2, 5)
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    results = []
    for value in (0.0, float("nan")):
        hidden = tokens["hidden"].masked_fill(~mask[..., None], value).requires_grad_()
        out, routing = moe(hidden, token_ids=tokens["token_ids"], token_mask=mask, generator=3)
        parameters = [hidden, *moe.parameters()]
        grads = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        assert not out[~mask].any() and int(routing.real_tokens) == 7
        assert grads[0] is not None and not grads[0][~mask].any()
        results.append((out, *(grad for grad in grads if grad is not None)))
    for clean, dirty in zip(*results, strict=True):
        assert clean.equal(dirty)


@every_rule
def test_the_routing_alone_is_that_of_the_layer(rule: RoutingRule) -> None:
    moe, tokens = layer(rule), inputs(2, 3)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    tokens["hidden"][~mask] = float("nan")
    torch.manual_seed(3)
    alone = moe.route(**tokens, token_mask=mask, generator=5)
    _, routing = moe(**tokens, token_mask=mask, generator=5)
    assert alone.expert_index.equal(routing.expert_index) and alone.weights.equal(routing.weights)
    if alone.weights.requires_grad:
        alone.weights[:, 0].sum().backward()
        assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in moe.parameters())


@pytest.mark.parametrize("view", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[..., :16]])
def test_strided_hidden_states(view: Callable[[Tensor], Tensor]) -> None:
    moe, hidden = layer(RULES["mixtral"]), view(torch.randn(3, 6, 20)[..., :16].expand(3, 6, 16))
    out, _ = moe(hidden)
    torch.testing.assert_close(out, moe(hidden.contiguous())[0], rtol=0, atol=0)


@every_rule
def test_deterministic_algorithms_are_enough(rule: RoutingRule) -> None:
    torch.use_deterministic_algorithms(True)
    moe, tokens = layer(rule), inputs(12)
    for method in METHODS:
        moe.dispatch = method
        moe.zero_grad()
        moe(**tokens)[0].sum().backward()
        assert moe.experts.down_proj.grad is not None


@every_rule
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_tokens(rule: RoutingRule, method: str, shape: tuple[int, ...]) -> None:
    tokens = inputs(*shape)
    tokens["hidden"].requires_grad_()
    out, routing = layer(rule, dispatch=method, num_shared_experts=1)(**tokens)
    assert out.shape == (*shape, HIDDEN) and routing.num_tokens == 0
    out.sum().backward()


@every_rule
@pytest.mark.parametrize("generator", [None, 7], ids=["default generator", "seed"])
def test_checkpointing_recomputes_the_same_routing_and_gradients(rule: RoutingRule, generator: int | None) -> None:
    moe, tokens = layer(rule), inputs(20)
    tokens["hidden"].requires_grad_()
    routings: list[Routing] = []

    def forward(hidden: Tensor) -> Tensor:
        out, routing = moe(hidden, token_ids=tokens["token_ids"], generator=generator)
        routings.append(routing)
        return out.square().sum()

    torch.manual_seed(5)
    plain = torch.autograd.grad(forward(tokens["hidden"]), [tokens["hidden"], *moe.parameters()], allow_unused=True)
    for reentrant in (False, True):
        routings.clear()
        moe.zero_grad()
        tokens["hidden"].grad = None
        torch.manual_seed(5)
        value = checkpoint(forward, tokens["hidden"], use_reentrant=reentrant)
        torch.rand(5)
        value.backward()
        first, again = routings
        assert again.expert_index.equal(first.expert_index) and again.weights.equal(first.weights)
        for parameter, expected in zip([tokens["hidden"], *moe.parameters()], plain, strict=True):
            assert parameter.grad is None if expected is None else parameter.grad.equal(expected)


def test_the_layer_keeps_no_state() -> None:
    moe = layer(RULES["deepseek_v3"], correction_bias=True)
    before, attributes = copy.deepcopy(moe.state_dict()), set(vars(moe))
    moe(torch.randn(5, HIDDEN))
    assert set(vars(moe)) == attributes
    assert all(value.equal(before[name]) for name, value in moe.state_dict().items())


@every_rule
def test_bfloat16_is_close_to_float32(rule: RoutingRule) -> None:
    moe, tokens = layer(rule).eval(), inputs(40)
    narrow = copy.deepcopy(moe).bfloat16()
    moe.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    hidden = tokens.pop("hidden").bfloat16()
    out, routing = narrow(hidden, **tokens)
    expected, same = moe(hidden.float(), **tokens)
    assert out.dtype == torch.bfloat16 and routing.weights.dtype == torch.float32
    assert routing.expert_index.equal(same.expert_index)
    # The kernel of a router's bfloat16 product adds in another order than PyTorch's of float32.
    torch.testing.assert_close(routing.weights, same.weights, rtol=1e-5 if ON_TRITON else 0.0, atol=0.0)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)
    narrow.train()(hidden, **tokens)[0].sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.bfloat16 for parameter in narrow.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_autocast_computes_experts_narrowly_and_the_router_widely(method: str) -> None:
    moe, hidden = layer(RULES["mixtral"], num_shared_experts=1, dispatch=method), torch.randn(20, HIDDEN)
    expected, plain = moe(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, routing = moe(hidden)
    assert routing.weights.equal(plain.weights) and routing.logits.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())


def test_a_rule_may_be_set_anew() -> None:
    moe, hidden = layer(recipes.mixtral(1).replace(weighting=moegate.Weighting())), torch.randn(6, HIDDEN)
    moe.rule = recipes.mixtral(4)
    assert moe(hidden)[1].top_k == 4
    moe.rule = recipes.gumbel_topk(2, temperature=5.0, relaxed=True)
    moe.rule = moe.rule.at_temperature(0.1)
    assert moe(hidden)[1].top_k == NUM_EXPERTS and moe.eval()(hidden)[1].top_k == 2


def test_the_previous_routing_reaches_a_residual_gate() -> None:
    first, second = layer(RULES["mixtral"]), layer(RULES["mixtral"], gate=ResidualGate(HIDDEN, NUM_EXPERTS))
    nn.init.normal_(second.gate.previous_weight)
    hidden = torch.randn(2, 5, HIDDEN)
    out, previous = first(hidden)
    _, routing = second(out, previous=previous)
    expected = second.gate(out) + (previous.logits @ second.gate.previous_weight.T).view(2, 5, NUM_EXPERTS)
    torch.testing.assert_close(routing.logits, expected.view(10, NUM_EXPERTS))
    (grad,) = torch.autograd.grad(routing.weights[:, 0].sum(), first.gate.weight)
    assert bool(grad.any())


def test_a_factor_per_expert_is_trained() -> None:
    moe, hidden = layer(RULES["mixtral"], expert_scale=True), torch.randn(30, HIDDEN)
    plain, _ = moe(hidden)
    with torch.no_grad():
        moe.expert_scale.fill_(2.0)
    doubled, _ = moe(hidden)
    torch.testing.assert_close(doubled, 2 * plain)
    doubled.sum().backward()
    assert moe.expert_scale.grad is not None and bool(moe.expert_scale.grad.any())


def test_a_correction_bias_moves_tokens_and_no_weights() -> None:
    rule = recipes.deepseek_v4(2)
    moe, hidden = layer(rule, correction_bias=True).eval(), torch.randn(30, HIDDEN)
    moe.gate.e_score_correction_bias[3] = 100.0
    _, routing = moe(hidden)
    assert bool((routing.expert_index[:, 0] == 3).all())
    gathered = routing.scores.gather(1, routing.expert_index)
    torch.testing.assert_close(routing.weights, gathered / gathered.sum(dim=1, keepdim=True) * 1.5)


def test_the_state_has_the_names_of_hugging_face() -> None:
    moe = layer(RULES["deepseek_v3"], num_shared_experts=1, correction_bias=True)
    assert set(moe.state_dict()) == {
        "gate.weight",
        "gate.e_score_correction_bias",
        "experts.gate_up_proj",
        "experts.down_proj",
        "shared_experts.gate_proj.weight",
        "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight",
    }


# --- compilation -------------------------------------------------------------------------------------------------

COMPILED = [
    "mixtral",
    "deepseek_v3",
    "llama4",
    "expert_choice",
    "soft_moe",
    "top_p",
    "gumbel_topk",
    "switch",
    "relaxed",
]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.usefixtures("compiler")
def test_one_graph_gives_what_eager_gives(name: str) -> None:
    moe, tokens = layer(RULES[name], num_shared_experts=1), inputs(2, 6)
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager")
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    results = []
    for run in (moe, compiled):
        torch.manual_seed(3)
        moe.zero_grad()
        hidden = tokens["hidden"].clone().requires_grad_()
        out, routing = run(hidden, token_mask=mask)
        out.square().sum().backward()
        results.append((out, routing, [hidden.grad, *(parameter.grad for parameter in moe.parameters())]))
    (out, routing, grads), (again, compiled_routing, compiled_grads) = results
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-6)
    # The compiled view may be wider, with empty slots at the end: its width can't depend on the data.
    assert compiled_routing.load.equal(routing.load)
    for ours, expected in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (2, 9)])
@pytest.mark.usefixtures("compiler")
def test_evaluation_compiles_without_gradients(shape: tuple[int, ...]) -> None:
    moe = layer(RULES["qwen3_moe"]).eval()
    compiled = torch.compile(moe, fullgraph=True, backend="aot_eager", dynamic=True)
    hidden = torch.randn(*shape, HIDDEN)
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden)[0], moe(hidden)[0])


@pytest.mark.usefixtures("compiler")
def test_export() -> None:
    moe = layer(RULES["deepseek_v3"], num_shared_experts=1).eval()

    class Output(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return moe(hidden)[0]

    hidden = torch.randn(2, 6, HIDDEN)
    program = torch.export.export(Output(), (hidden,), dynamic_shapes=({1: torch.export.Dim("length", min=2)},))
    longer = torch.randn(2, 9, HIDDEN)
    torch.testing.assert_close(program.module()(longer), moe(longer)[0])


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, on their first import
def test_inductor() -> None:
    moe, hidden = layer(RULES["mixtral"]).eval(), torch.randn(10, HIDDEN)
    with torch.no_grad():
        out, routing = torch.compile(moe, fullgraph=True)(hidden)
        expected, eager = moe(hidden)
    assert routing.expert_index.equal(eager.expert_index)
    torch.testing.assert_close(routing.weights, eager.weights, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MoE(8, 8, 4, "mixtral"), TypeError, r"rule must be a RoutingRule, such as .* got 'mixtral'"),
        (lambda: MoE(8, 8, 4, recipes.mixtral(5)), ValueError, "top_k=5 exceeds the 4 experts"),
        (lambda: MoE(8, 8, 4, recipes.deepseek_v3()), ValueError, "num_groups=8"),
        (lambda: MoE(8, 8, 4, dispatch="sort"), ValueError, r"Did you mean 'sorted'\?"),
        (lambda: MoE(8, 8, 4, activation="swish"), ValueError, "activation must be one of"),
        (lambda: MoE(8, 8, 4, gate=LinearGate(8, 5)), ValueError, "The gate gives 5 logits, but 4 are needed"),
        (lambda: MoE(8, 8, 4, gate=LinearGate(6, 4)), ValueError, "hidden states of 6, but hidden_size=8"),
        (lambda: MoE(8, 8, 4, gate=nn.Linear(8, 4)), TypeError, "gate must be a Gate"),
        (lambda: MoE(8, 8, 4, gate=MLPGate(8, 4), correction_bias=True), ValueError, "give your gate correction_bias"),
        (lambda: MoE(8, 8, 4, num_shared_experts=-1), ValueError, "num_shared_experts must be at least 0"),
        (lambda: MoE(8, 8, 4, num_shared_experts=1.5), TypeError, "num_shared_experts must be an integer"),
        (lambda: MoE(0, 8, 4), ValueError, "hidden_size must be at least 1"),
        (lambda: MoE(8, 0, 4), ValueError, "intermediate_size must be at least 1"),
        (lambda: MoE(8, 8, 0), ValueError, "num_experts must be at least 1"),
    ],
)
def test_layers_that_are_none(make: Callable[[], MoE], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": torch.randn(3, 7)}, ValueError, r"hidden must be \[..., 16\], got \(3, 7\)"),
        ({"hidden": torch.tensor(1.0)}, ValueError, r"got \(\)"),
        ({"hidden": torch.ones(3, 16, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"token_mask": torch.ones(4, dtype=torch.bool)}, ValueError, r"token_mask must have one value per token"),
        ({"token_mask": torch.ones(3)}, TypeError, "pass attention_mask.bool()"),
        ({"token_mask": [True] * 3}, TypeError, "token_mask must be a tensor, got list"),
        ({"token_mask": torch.ones(3, dtype=torch.bool, device="meta")}, ValueError, "token_mask is on meta"),
        ({"generator": "seed"}, TypeError, "generator must be"),
    ],
)
def test_inputs_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(RULES["mixtral"])(**{"hidden": torch.randn(3, HIDDEN), **arguments})


@pytest.mark.parametrize("gate", [None, "MLPGate", "CosineGate", "NormedGate", "ResidualGate", "NoisyLinearGate"])
def test_a_layer_made_on_the_meta_device_can_be_set_up(gate: str | None) -> None:
    with torch.device("meta"):
        made = None if gate is None else getattr(moegate.gates, gate)(8, 4, correction_bias=True)
        moe = moegate.MoE(8, 16, 4, moegate.recipes.mixtral(), gate=made, num_shared_experts=1, expert_scale=True)
        if gate is None:  # the poisoned memory of the tests lies on the processor, also where a fallback made it
            assert moe(torch.zeros(3, 8, device="meta"))[0].shape == (3, 8)
    moe.to_empty(device="cpu").reset_parameters()
    out, _ = moe(torch.randn(3, 8))
    assert out.isfinite().all() and out.abs().sum() > 0
    assert all(parameter.isfinite().all() for parameter in moe.parameters())


def test_narrow_hidden_states_in_a_wide_layer() -> None:
    moe = moegate.MoE(8, 16, 4, moegate.recipes.mixtral(), num_shared_experts=1)
    assert moe(torch.randn(3, 8, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


def test_what_can_not_be_is_refused_when_the_layer_is_made() -> None:
    for option in ("correction_bias", "expert_scale"):
        with pytest.raises(ValueError, match="Soft routing mixes by its logits alone"):
            moegate.MoE(8, 16, 4, moegate.recipes.soft_moe(), **{option: True})
    with pytest.raises(TypeError, match="previous must be the Routing"):
        moegate.MoE(8, 16, 4)(torch.randn(2, 8), previous=torch.randn(2, 4))
