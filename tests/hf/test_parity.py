"""Every family against itself: what the rule of a layer gives is what the model's experts receive, token by token."""

import inspect
from functools import cache

import pytest
import torch

import moegate

pytest.importorskip("transformers")

from ground_truth import spread, watched
from tiny_models import MODELS, every_model, model_class, tiny_inputs, tiny_model

from moegate.hf import moe_layers
from moegate.hf.families import FAMILIES
from moegate.hf.logits import gate_logits

TOLERANCE = 1e-6
SEEDS = range(2)

# These routers return probabilities, or the keys of a pair apart.
NO_RAW_LOGITS = {"gemma4", "diffusion_gemma", "doge"}


@cache
def sorts(gate):
    return "sorted=False" not in inspect.getsource(gate)


def family_of(name):
    return name.split(maxsplit=1)[0]


def with_rule():
    rows = {block.name: block for blocks in FAMILIES.values() for block in blocks}
    without = {family for family, blocks in FAMILIES.items() if all(rows[block.name].no_rule for block in blocks)}
    return [name for name in every_model() if family_of(name) not in without]


def routed(layer, logits, seen):
    """What moegate makes of the logits: by the rule of the layer and the tensors that belong to it."""
    given = {}
    if layer.hash_table is not None:
        given = {"hash_table": layer.hash_table, "token_ids": seen.args[1].reshape(-1)}
    return moegate.route(logits, layer.rule, bias=layer.bias, expert_scale=layer.expert_scale, **given)


def assert_same(layer, seen, routing, name):
    theirs, ours = seen.weights, spread(routing.expert_index, routing.weights, layer.num_experts)
    different = (ours.isnan() != theirs.isnan()).any(-1)
    assert not different.any(), f"{layer.name}: {int(different.sum())} of {len(different)} tokens go elsewhere"
    if name != "doge":  # whose weights a test of its own sees
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=0.0, equal_nan=True)
    if seen.index is not None and sorts(type(layer.gate)):
        assert torch.equal(routing.expert_index, seen.index), f"{layer.name}: another order"


def assert_raw_logits(seen, logits, num_experts):
    """Bit for bit what the router returns as its logits."""
    tensors = [value for value in seen.returned if isinstance(value, torch.Tensor) and value.is_floating_point()]
    # Inkling keeps the logits of its shared experts to itself.
    candidates = [tensor for tensor in tensors if tensor.shape[-1] >= num_experts]
    assert any(
        torch.equal(tensor.reshape(-1, tensor.shape[-1]).float(), logits.flatten(0, -2)[:, : tensor.shape[-1]].float())
        for tensor in candidates
    )


def assert_parity(name, training=False, **changes):
    """Returns the layers, and for each call of a layer what was seen, the logits and what moegate routed."""
    model = tiny_model(name, **changes).train(training)
    layers, results = moe_layers(model), []
    assert layers
    for seed in SEEDS:
        with watched(layers) as calls, torch.no_grad():
            model(**tiny_inputs(name, seed))
            for layer, calls_of_layer in zip(layers, calls, strict=True):
                assert calls_of_layer, f"{layer.name} was not called"
                for seen in calls_of_layer:
                    logits = gate_logits(layer, *seen.args, **seen.kwargs)
                    routing = routed(layer, logits, seen)
                    assert_same(layer, seen, routing, name)
                    if family_of(name) not in NO_RAW_LOGITS:
                        assert_raw_logits(seen, logits, layer.num_experts)
                    results.append((layer, seen, logits, routing))
    return results


def without_noise(name):
    fields = inspect.signature(model_class(name).config_class.__init__).parameters
    return {field: 0.0 for field in ("router_jitter_noise", "input_jitter_noise") if field in fields}


@pytest.mark.parametrize("name", with_rule())
def test_in_evaluation(name):
    results = assert_parity(name)
    biased = [result for result in results if result[0].bias is not None]
    changed = [
        not torch.equal(
            moegate.route(logits, layer.rule).expert_index.sort(-1).values, routing.expert_index.sort(-1).values
        )
        for layer, _, logits, routing in biased
    ]
    # A bias that changed nothing would prove nothing.
    assert not biased or any(changed)
    layer, row = results[0][0], results[0][0].row
    if not (row.rule or row.config or row.scaled_after or row.hash_table) and name != "dots3_note vision":
        assert moegate.RoutingRule.from_config(layer.config) == layer.rule


# SparseMixer draws its experts: a test of its own sets the seed.
@pytest.mark.parametrize("name", [name for name in with_rule() if name != "phimoe"])
def test_in_training(name):
    assert_parity(name, training=True, **without_noise(name))


SCALES = (
    "routed_scaling_factor",
    "route_scale",
    "router_scaling_factor",
    "moe_router_scaling_factor",
    "moe_routed_scaling_factor",
)
CHOICES = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
# By the model, or by its experts: those of LongCat-Flash can't run with one choice.
TOP_K_IS_FIXED = {"phimoe", "zaya", "switch_transformers", "dbrx", "longcat_flash"}


def varied(name, top_k, **wanted):
    """Those of the wanted settings that the family's configuration has, with a ``top_k``."""
    fields = inspect.signature(model_class(name).config_class.__init__).parameters
    settings = {field: value for field, value in wanted.items() if field in fields}
    settings |= {field: 1.7 for field in SCALES if field in fields}
    return settings | {field: top_k for field in CHOICES if field in fields}


@pytest.mark.parametrize("name", [name for name in with_rule() if family_of(name) not in TOP_K_IS_FIXED])
@pytest.mark.parametrize(
    ("top_k", "wanted"),
    [(1, {"norm_topk_prob": False}), (3, {"norm_topk_prob": True, "n_group": 4, "topk_group": 2})],
    ids=["one expert, as it is", "three of two groups, normalised"],
)
def test_with_other_settings(name, top_k, wanted):
    changes = varied(name, top_k, **wanted)
    (layer, *_), *_ = assert_parity(name, **changes)
    assert layer.rule.selection.top_k == top_k
    assert layer.rule != moe_layers(tiny_model(name))[0].rule


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("axk2", {"n_group": None, "topk_group": None}),
        ("cohere2_moe", {"expert_selection_fn": "sigmoid", "norm_topk_prob": True, "num_shared_experts": 1}),
        ("cohere2_moe", {"expert_selection_fn": "sigmoid", "norm_topk_prob": False}),
        ("dbrx", {"moe_normalize_expert_weights": None, "moe_top_k": 3}),
        ("dbrx", {"moe_normalize_expert_weights": 2.0}),
        ("dbrx", {"moe_normalize_expert_weights": 3.0, "moe_top_k": 1}),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
        ("deepseek_ocr2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
        ("deepseek_v4", {"scoring_func": "sigmoid"}),
        ("ernie4_5_moe", {"moe_norm_min": 0.4}),
        ("ernie4_5_vl_moe", {"moe_norm_min": 0.4}),
        ("hunyuan_v1_moe", {"moe_topk": [1, 2, 3, 4]}),
        ("doge", {"norm_topk_prob": True, "num_experts_per_tok": 5}),
        ("inkling", {"n_shared_experts": 3}),
        ("inkling2", {"scoring_func": "sqrtsoftplus"}),
        ("laguna", {"moe_router_logit_softcapping": 0.5}),
        ("lfm2_moe", {"use_expert_bias": False}),
        ("longcat_flash", {"zero_expert_num": 0}),
        ("longcat_flash", {"moe_topk": 3, "routed_scaling_factor": 1.7}),
        ("muse_spark", {"output_multiplier": 3.0}),
        ("phimoe", {"router_jitter_noise": 0.4}),
        ("phimoe", {"num_experts_per_tok": 3, "router_jitter_noise": 0.4}),
        ("unlimited_ocr", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ],
    ids=str,
)
def test_with_settings_of_its_own(name, changes):
    if name == "dbrx":
        changes = {"ffn_config": MODELS[name].changes["ffn_config"] | changes}
    (layer, *_), *_ = assert_parity(name, **changes)
    default = moe_layers(tiny_model(name))[0]
    # Some settings belong to the gate or to its bias.
    if not changes.keys() & {
        "moe_router_logit_softcapping",
        "use_expert_bias",
        "zero_expert_num",
        "output_multiplier",
        "n_group",
        "router_bias",
    }:
        assert layer.rule != default.rule


@pytest.mark.parametrize("training", [False, True])
def test_axk2_ranks_the_experts_of_dropped_groups_by_nothing(training):
    # So low a bias puts every expert of a kept group behind them: both are taken, and which is no matter of ties.
    model = tiny_model("axk2", n_group=4, topk_group=3, num_experts_per_tok=6).train(training)
    layers = moe_layers(model)
    for layer in layers:
        layer.bias.sub_(2.0)
    with watched(layers) as calls, torch.no_grad():
        model(**tiny_inputs("axk2"))
    for layer, (seen,) in zip(layers, calls, strict=True):
        logits = gate_logits(layer, *seen.args)
        assert_same(layer, seen, routed(layer, logits, seen), "axk2")
        biased = (logits.sigmoid() + layer.bias).unflatten(-1, (4, 2))
        dropped = 2 * biased.sum(-1).argmin(-1, keepdim=True)
        assert (~seen.weights.gather(-1, torch.cat([dropped, dropped + 1], dim=-1)).isnan()).all()
        assert moegate.RoutingRule.from_config(layer.config) == layer.rule


def near_nothing(module, args, kwargs):
    """Makes the logits of a gate small: its first column is what all tokens have in common."""
    hidden = 0.1 * args[0]
    hidden[..., 0] = 1.0
    return (hidden, *args[1:]), kwargs


@pytest.mark.parametrize("name", ["afmoe", "deepseek_v3", "flint", "inkling2", "kolibri1", "lfm2_moe", "muse_spark"])
@pytest.mark.parametrize("shift", [-12.0, -25.0])
def test_with_scores_near_nothing(name, shift):
    # What is added to the sum that the weights are divided by shows.
    model = tiny_model(name)
    layers = moe_layers(model)
    for layer in layers:
        weight = layer.gate.get_parameter(layer.row.weight)
        weight.data[:, 0] = shift / getattr(layer.gate, "output_multiplier", 1.0)
        layer.gate.register_forward_pre_hook(near_nothing, with_kwargs=True)
    with watched(layers) as calls, torch.no_grad():
        model(**tiny_inputs(name))
    for layer, (seen,) in zip(layers, calls, strict=True):
        logits = gate_logits(layer, *seen.args)
        assert logits.max() < shift / 2
        assert_same(layer, seen, routed(layer, logits, seen), name)


def twice(seed, one, other):
    """The results of two functions that draw from the default generator, from the same seed."""
    torch.manual_seed(seed)
    first = one()
    torch.manual_seed(seed)
    return first, other()


def called(name, **changes):
    """The first layer of a model in training, and what its gate was called with."""
    model = tiny_model(name, **changes).train()
    layers = moe_layers(model)
    with watched(layers[:1]) as calls, torch.no_grad():
        model(**tiny_inputs(name))
    return layers[0], calls[0][0]


@pytest.mark.parametrize("seed", range(5))
def test_phimoe_draws_the_same_experts_from_the_same_seed(seed):
    layer, seen = called("phimoe", router_jitter_noise=0.4)
    hidden = seen.args[0]

    def theirs():
        return layer.gate(hidden.clone())

    def ours():
        return moegate.route(gate_logits(layer, hidden), layer.rule, training=True)

    with torch.no_grad():
        (_, weights, index), routing = twice(seed, theirs, ours)
    assert torch.equal(routing.expert_index, index)
    torch.testing.assert_close(routing.weights, weights, rtol=TOLERANCE, atol=0.0)
    # Drawn indeed: the best two would be others for some token.
    assert not torch.equal(index, moegate.route(gate_logits(layer, hidden), layer.rule).expert_index)


@pytest.mark.parametrize(
    ("name", "changes", "place"),
    [
        ("switch_transformers", {"router_jitter_noise": 0.3}, 2),
        ("dbrx", {"ffn_config": MODELS["dbrx"].changes["ffn_config"] | {"moe_jitter_eps": 0.3}}, 0),
        ("phimoe", {"input_jitter_noise": 0.3}, 0),
    ],
)
def test_a_router_that_draws_a_noise_draws_that_of_its_rule(name, changes, place):
    layer, seen = called(name, **changes)
    noise, hidden = layer.rule.noise, seen.args[0]
    assert noise == moegate.noise.InputJitter(0.3)

    def theirs():
        returned = layer.gate(hidden.clone())
        return (returned if isinstance(returned, tuple) else (returned,))[place]

    with torch.no_grad():
        logits, ours = twice(7, theirs, lambda: gate_logits(layer, noise.on_hidden(hidden, None)))
    torch.testing.assert_close(ours, logits.reshape(ours.shape), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, gate_logits(layer, hidden), atol=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "minimax", "minimax_m2"])
def test_a_noise_of_the_block_is_none_of_the_rule(name):
    model = tiny_model(name, router_jitter_noise=0.3).train()
    layer, hidden = moe_layers(model)[0], torch.randn(2, 50, 32)
    with watched([layer]) as calls, torch.no_grad():
        layer.block(hidden.clone())
    factors = calls[0][0].args[0].view_as(hidden) / hidden
    assert 0.7 - 1e-5 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.3 + 1e-5
    assert layer.rule.noise is None
    assert_parity(name, training=True, router_jitter_noise=0.3)


@pytest.mark.parametrize("name", ["llama4", "deepseek_v4", "minimax_m3_vl"])
def test_a_noise_that_only_the_configuration_knows_is_none_of_the_rule(name):
    results = assert_parity(name, training=True, router_jitter_noise=0.3)
    assert results[0][0].rule.noise is None
    assert moegate.RoutingRule.from_config(results[0][0].config).noise is None


def test_a_block_that_scales_after_its_experts_scales_by_what_the_rule_leaves_out():
    for name in ("beam", "laguna", "step3p7", "minimax_m3_vl", "openai_privacy_filter"):
        layer = moe_layers(tiny_model(name, **varied(name, 3)))[0]
        whole = moegate.RoutingRule.from_config(layer.config).weighting.scale
        block, hidden = layer.block, torch.randn(1, 20, 32)
        # The experts return what each token's weights sum to; the shared ones nothing.
        layer.experts.forward = lambda hidden, index, weights: weights.sum(-1, keepdim=True).expand_as(hidden)
        if layer.shared_experts is not None:
            layer.shared_experts.forward = torch.zeros_like
        with watched([layer]) as calls, torch.no_grad():
            out = block(hidden)
        out = out[0] if isinstance(out, tuple) else out
        routing = moegate.route(gate_logits(layer, *calls[0][0].args), layer.rule, bias=layer.bias)
        factor = whole / layer.rule.weighting.scale
        assert factor in (1.7, 3.0)
        torch.testing.assert_close(out[0, :, 0], routing.weights.sum(-1) * factor, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("places", [1, 3, 12])
def test_switch_transformers_drops_what_an_expert_has_no_room_for(places):
    results = assert_parity("switch_transformers", expert_capacity=places)
    dropped = [bool(seen.weights.isnan().all(-1).any()) for _, seen, _, _ in results]
    assert any(dropped) == (places < 12)
    # By sequence: as one, the twenty-four tokens of two sequences would lose more.
    layer, _, logits, routing = results[0]
    assert logits.shape == (2, 12, 8)
    as_one = moegate.route(logits.flatten(0, 1), layer.rule)
    assert places > 1 or (as_one.expert_index < 0).sum() > (routing.expert_index < 0).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"expert_capacity": 3, "moe_eval_capacity_token_fraction": -1.0},
        {"moe_eval_capacity_token_fraction": 0.2},
        {"expert_capacity": 3, "moe_eval_capacity_token_fraction": -1.0, "batch_prioritized_routing": True},
        {"moe_eval_capacity_token_fraction": 0.2, "normalize_router_prob_before_dropping": True},
    ],
    ids=str,
)
def test_the_router_of_nllb_moe(changes):
    # The rule of its configuration is what its router chooses; what its experts make of that is another matter.
    layer, hidden = moe_layers(tiny_model("nllb_moe", **changes))[0], torch.randn(24, 32)
    rule = moegate.RoutingRule.from_config(layer.config)
    with torch.no_grad():
        first, weights, logits = layer.gate(hidden)
        assert torch.equal(gate_logits(layer, hidden), logits)
        routing = moegate.route(logits, rule)
    ours = torch.zeros(24, 8).scatter_add(1, routing.expert_index.clamp(min=0), routing.weights)
    torch.testing.assert_close(ours, weights, rtol=TOLERANCE, atol=0.0)
    assert torch.equal(routing.expert_index[:, 0] >= 0, first.sum(-1) > 0)
    assert bool((weights > 0).sum(-1).lt(2).any()) == bool(changes)


def test_inkling_weighs_its_shared_experts_with_the_others():
    for layer, seen, _, routing in assert_parity("inkling", n_shared_experts=3, route_scale=1.7):
        torch.testing.assert_close(routing.shared_weights, seen.returned[3], rtol=TOLERANCE, atol=0.0)
        assert layer.rule.extra == moegate.extra.SharedWeights(3)


@pytest.mark.parametrize("changes", [{}, {"norm_topk_prob": True, "num_experts_per_tok": 5}], ids=str)
def test_doge_weighs_pairs_of_keys(changes):
    # Its weights are nowhere passed on; they show in what the block returns.
    layer, hidden = moe_layers(tiny_model("doge", **changes))[0], torch.randn(2, 12, 32)
    with torch.no_grad():
        block, tokens = layer.block, hidden.view(-1, 32)
        routing = moegate.route(gate_logits(layer, hidden), layer.rule)
        read = (block.down_embed(routing.expert_index) @ tokens[:, :, None]).squeeze(-1)
        written = (block.act_fn(read) * routing.weights)[:, None] @ block.up_embed(routing.expert_index)
        shared = block.down_proj(block.act_fn(block.gate_proj(tokens)) * block.up_proj(tokens))
        torch.testing.assert_close(written.squeeze(1) + shared, block(hidden)[0].view(-1, 32), rtol=1e-5, atol=1e-6)


def test_zaya_skips():
    results = assert_parity("zaya")
    skipped = torch.cat([routing.expert_index.flatten() < 0 for _, _, _, routing in results])
    assert not skipped.all()
    for layer in moe_layers(model := tiny_model("zaya")):
        layer.bias[-1] = 0.3
    layers = moe_layers(model)
    with watched(layers) as calls, torch.no_grad():
        model(**tiny_inputs("zaya"))
    routings = []
    for layer, (seen,) in zip(layers, calls, strict=True):
        routings.append(moegate.route(gate_logits(layer, *seen.args, **seen.kwargs), layer.rule, bias=layer.bias))
        assert_same(layer, seen, routings[-1], "zaya")
    assert any((routing.expert_index < 0).any() for routing in routings)


def test_nllb_moe_runs_two_experts_only():
    # When this fails, transformers has been mended and the row can have a rule.
    layer = moe_layers(tiny_model("nllb_moe"))[0]
    hidden, ran = torch.randn(2, 12, 32), []
    for number in range(layer.num_experts):
        layer.experts[f"expert_{number}"].register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        layer.block(hidden)
        first, _, _ = layer.gate(hidden.view(-1, 32))
    assert sorted(set(ran)) == [0, 1]
    assert len(first.argmax(-1).unique()) > 2
    with pytest.raises(ValueError, match=r"has no rule: the experts of transformers 5.23 read the router's mask"):
        _ = layer.rule
