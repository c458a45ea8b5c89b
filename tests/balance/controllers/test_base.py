"""What every controller promises, checked for each of them."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import moegate
from moegate.balance.controllers import (
    BiasController,
    PIDBias,
    ProportionalBias,
    QuantileBias,
    SignBias,
    SMEBUBias,
)
from moegate.records import Routing

NUM_EXPERTS, TOP_K = 6, 2
RULE = moegate.RoutingRule(moegate.selection.TopK(TOP_K), score=moegate.scoring.Sigmoid())
SKEW = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0])

MAKERS: dict[str, Callable[[], BiasController]] = {
    "sign": lambda: SignBias(NUM_EXPERTS, rate=0.01),
    "sign_centred": lambda: SignBias(NUM_EXPERTS, rate=0.01, centre=True),
    "proportional": lambda: ProportionalBias(NUM_EXPERTS, rate=0.01),
    "pid": lambda: PIDBias(NUM_EXPERTS, kp=0.01, ki=0.01, kd=0.01),
    "quantile": lambda: QuantileBias(NUM_EXPERTS, TOP_K),
    "smebu": lambda: SMEBUBias(NUM_EXPERTS, rate=0.01),
}
every_controller = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def routed(bias: Tensor, tokens: int = 64, mask: Tensor | None = None, seed: int = 0) -> Routing:
    logits = torch.randn(tokens, NUM_EXPERTS, generator=torch.Generator().manual_seed(seed)) + SKEW
    return moegate.route(logits, RULE, bias=bias, token_mask=mask)


def state(controller: BiasController) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in controller.state_dict().items()}


@every_controller
def test_the_bias_changes_in_place_towards_balance(make: Callable[[], BiasController]) -> None:
    controller, bias = make(), torch.zeros(NUM_EXPERTS)
    address = bias.data_ptr()
    controller.observe(routed(bias))
    assert controller.update(bias) is None
    assert bias.data_ptr() == address and bias.dtype == torch.float32
    assert bias[0] < 0 < bias[-1]
    assert not controller.load.any()  # the counts are gone, so the next step starts anew


@every_controller
def test_the_mean_of_the_bias_stays(make: Callable[[], BiasController]) -> None:
    controller, bias = make(), torch.full((NUM_EXPERTS,), 5.0)  # where published biases sit
    for seed in range(20):
        controller.observe(routed(bias, seed=seed))
        controller.update(bias)
    if make is not MAKERS["sign"]:
        assert bias.mean().item() == pytest.approx(5.0, abs=1e-5)


@every_controller
@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens_change_nothing(make: Callable[[], BiasController], masked: bool) -> None:
    controller, bias = make(), torch.rand(NUM_EXPERTS)
    controller.observe(routed(bias))
    controller.update(bias)
    before, kept = state(controller), bias.clone()
    if masked:
        controller.observe(routed(bias, mask=torch.zeros(64, dtype=torch.bool)))
    else:
        controller.observe(routed(bias, tokens=0))
    controller.update(bias)
    assert torch.equal(bias, kept)
    for name, value in state(controller).items():
        assert torch.equal(value, before[name]), name


@every_controller
def test_padding_is_not_observed(make: Callable[[], BiasController]) -> None:
    mask = torch.arange(64) < 40
    biases = []
    for routing in (
        moegate.route(routed(torch.zeros(6)).logits[:40], RULE, bias=torch.zeros(6)),
        routed(torch.zeros(6), mask=mask),
    ):
        controller, bias = make(), torch.zeros(6)
        controller.observe(routing)
        controller.update(bias)
        biases.append(bias)
    assert torch.equal(*biases)


@every_controller
def test_what_was_dropped_is_observed(make: Callable[[], BiasController]) -> None:
    routing = routed(torch.zeros(6))
    nothing_left = routing.with_assignment(torch.full_like(routing.expert_index, -1), routing.weights * 0)
    controller = make()
    controller.observe(nothing_left)
    assert torch.equal(controller.load, routing.selected_load)


@every_controller
def test_micro_batches_add_up_to_the_batch(make: Callable[[], BiasController]) -> None:
    whole, parts = make(), make()
    bias, split_bias = torch.zeros(6), torch.zeros(6)
    for seed in range(3):
        routing = routed(bias, tokens=60, seed=seed)
        whole.observe(routing)
        whole.update(bias)
        for logits in routing.logits.split((7, 20, 33)):
            parts.observe(moegate.route(logits, RULE, bias=split_bias))
        parts.update(split_bias)
    assert torch.equal(bias, split_bias)


@every_controller
def test_evaluation_mode_freezes(make: Callable[[], BiasController]) -> None:
    controller, bias = make(), torch.zeros(6)
    controller.observe(routed(bias))
    before = state(controller)
    controller.eval()
    controller.observe(routed(bias, seed=1))
    controller.update(bias)
    assert not bias.any()
    for name, value in state(controller).items():
        assert torch.equal(value, before[name]), name
    controller.train()
    controller.update(bias)
    assert bias.any()


@every_controller
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_state_keeps_its_dtype_and_its_bits(make: Callable[[], BiasController], dtype: torch.dtype) -> None:
    controller, bias = make(), torch.zeros(6)
    for seed in range(2):
        controller.observe(routed(bias, seed=seed))
        controller.update(bias)
    controller.observe(routed(bias, seed=2))
    before = state(controller)
    torch.nn.Sequential(controller).to(dtype)
    for name, value in state(controller).items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, before[name]), name


@every_controller
def test_a_checkpoint_continues_to_the_same_bits(make: Callable[[], BiasController]) -> None:
    controller, bias = make(), torch.zeros(6)
    for seed in range(3):
        controller.observe(routed(bias, seed=seed))
        controller.update(bias)
    controller.observe(routed(bias, seed=3))  # saved in the middle of a step
    resumed, resumed_bias = make(), bias.clone()
    resumed.load_state_dict(controller.state_dict())
    for owner, value in ((controller, bias), (resumed, resumed_bias)):
        owner.observe(routed(value, seed=4))
        owner.update(value)
        owner.observe(routed(value, seed=5))
        owner.update(value)
    assert torch.equal(bias, resumed_bias)


@every_controller
def test_counts_are_no_buffers_but_plain_tensors_of_the_state_dict(make: Callable[[], BiasController]) -> None:
    """Buffers of a module inside a DDP model are overwritten with those of rank 0 before every forward."""
    model = torch.nn.Sequential(make())
    controller = model[0]
    controller.observe(routed(torch.zeros(6)))
    pending = {"0.load"} | ({"0.histogram"} if isinstance(controller, QuantileBias) else set())
    assert not pending & {name for name, _ in model.named_buffers()}
    saved = model.state_dict()
    assert pending <= set(saved)
    for value in saved.values():
        assert type(value) is Tensor and value.dtype in (torch.int64, torch.float32) and not value.requires_grad
    assert saved["0.load"].any()
    assert torch.equal(load(save(saved))["0.load"], controller.load)  # safetensors
    keys = list(saved)
    for values in (model.state_dict(keep_vars=True), copy.deepcopy(model).state_dict()):
        assert list(values) == keys
        for name, value in values.items():
            assert torch.equal(value, saved[name])


@every_controller
def test_a_copy_counts_for_itself(make: Callable[[], BiasController]) -> None:
    controller = make()
    controller.observe(routed(torch.zeros(6)))
    copied = copy.deepcopy(controller)
    copied.observe(routed(torch.zeros(6)))
    assert torch.equal(copied.load, 2 * controller.load)
    restored = pickle.loads(pickle.dumps(copied))
    assert torch.equal(restored.load, copied.load)


@every_controller
def test_counts_load_as_buffers_do(make: Callable[[], BiasController]) -> None:
    controller = make()
    controller.observe(routed(torch.zeros(6)))
    saved = state(controller)
    with torch.device("meta"):
        assigned = make()
    assert assigned.load.is_meta
    assigned.load_state_dict(saved, assign=True)
    assert torch.equal(assigned.load, controller.load)
    assigned.observe(routed(torch.zeros(6)))
    assert torch.equal(assigned.load, 2 * controller.load)
    assert not any(name == "load" for name, _ in assigned.named_buffers())

    without = {name: value for name, value in saved.items() if name != "load"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "load"'):
        make().load_state_dict(without)
    assert make().load_state_dict(without, strict=False).missing_keys == ["load"]
    with pytest.raises(RuntimeError, match="size mismatch for load"):
        make().load_state_dict(saved | {"load": torch.zeros(5, dtype=torch.int64)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "loaf"'):
        make().load_state_dict(saved | {"loaf": saved["load"]})


@every_controller
def test_counts_move_with_the_module(make: Callable[[], BiasController]) -> None:
    model = torch.nn.Sequential(make()).to("meta")
    assert model[0].load.is_meta and all(value.is_meta for value in model.state_dict().values())
    model.to_empty(device="cpu")
    model[0].forget()
    model[0].observe(routed(torch.zeros(6)))
    assert torch.equal(model[0].load, routed(torch.zeros(6)).selected_load)


def test_a_state_of_its_own_controller_is_held_by_one_line() -> None:
    class SecondChoices(BiasController):
        seconds: Tensor

        def __init__(self) -> None:
            super().__init__(NUM_EXPERTS)
            self.register_pending("seconds", torch.zeros(NUM_EXPERTS, dtype=torch.int64))

        def step(self, load_E: Tensor) -> Tensor:
            return torch.zeros(NUM_EXPERTS)

    controller = SecondChoices()
    controller.seconds += 3
    assert "seconds" in controller.state_dict() and "seconds" not in dict(controller.named_buffers())
    assert "seconds" not in repr(controller)
    controller.forget()
    assert not controller.seconds.any()


@every_controller
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_counts_once(make: Callable[[], BiasController], reentrant: bool) -> None:
    logits = (torch.randn(32, 6) + SKEW).requires_grad_()
    routings: list[Routing] = []
    passes = 0

    def layer(logits: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        routings.append(moegate.route(logits, RULE, bias=torch.zeros(6)))
        return routings[-1].weights.square()  # saved for the backward, so the recomputation gets this far

    controller = make()
    out = checkpoint(layer, logits, use_reentrant=reentrant)
    controller.observe(routings[-1])  # what the caller got
    out.sum().backward()
    assert passes == 2  # the backward did route again
    assert torch.equal(routings[0].expert_index, routings[1].expert_index)
    assert int(controller.load.sum()) == 32 * TOP_K


@every_controller
def test_a_parameter_can_be_the_bias_and_gets_no_gradient(make: Callable[[], BiasController]) -> None:
    controller, bias = make(), torch.nn.Parameter(torch.zeros(6))
    controller.observe(routed(bias.detach()))
    controller.update(bias)
    assert bias.grad is None and bias.grad_fn is None and bias.any()
    assert not any(True for _ in controller.parameters())


@every_controller
@pytest.mark.parametrize("bias", [torch.zeros(6, dtype=torch.bfloat16), torch.zeros(6).double(), [0.0] * 6, None])
def test_a_bias_that_is_not_float32_is_refused(make: Callable[[], BiasController], bias: object) -> None:
    with pytest.raises(TypeError, match="must be a float32 tensor: in lower precision the steps round away"):
        make().update(bias)


@every_controller
def test_another_number_of_experts_is_refused(make: Callable[[], BiasController]) -> None:
    controller = make()
    with pytest.raises(ValueError, match=r"bias has shape \(5,\), but the controller has 6 experts"):
        controller.update(torch.zeros(5))
    with pytest.raises(ValueError, match="has 4 experts, the controller has 6"):
        controller.observe(moegate.route(torch.randn(3, 4), RULE))


@every_controller
def test_repr_shows_the_settings(make: Callable[[], BiasController]) -> None:
    assert "num_experts=6" in repr(make())


def test_the_reason_for_float32() -> None:
    """In bfloat16, a bias of 0.5 swallows steps of 0.001; at 0.25 they just survive."""
    step = 1e-3
    assert torch.tensor(0.5, dtype=torch.bfloat16) + step == 0.5
    assert torch.tensor(0.25, dtype=torch.bfloat16) + step != 0.25
    assert torch.tensor(0.5) + step > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignBias(0), "num_experts must be at least 1, got 0"),
        (lambda: SMEBUBias(4, momentum=1.0), "momentum=1.0"),
        (lambda: SMEBUBias(4, momentum=float("nan")), "momentum must be a (finite )?number, got nan"),
        (lambda: QuantileBias(4, 4), "top_k=4 with 4 experts.*from 1 to 3"),
        (lambda: QuantileBias(4, 0), "top_k must be at least 1, got 0"),
        (lambda: QuantileBias(4, 1, num_bins=1), "num_bins must be at least 2, got 1"),
        (lambda: QuantileBias(6, 1).observe(routed(torch.zeros(6))), "top_k=2, the controller is for top_k=1"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


KINDS = {
    SignBias: ("rate",),
    ProportionalBias: ("rate",),
    PIDBias: ("kp", "ki", "kd"),
    SMEBUBias: ("rate", "kappa"),
    lambda experts, **gain: QuantileBias(experts, 1, **gain): ("rate",),
}
GAINS = [(kind, name) for kind, names in KINDS.items() for name in names]
POSITIVE = [
    (PIDBias, "limit"),
    (lambda experts, **setting: QuantileBias(experts, 1, **setting), "span"),
]


@pytest.mark.parametrize(("kind", "name"), GAINS + POSITIVE)
@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf")])
def test_a_gain_that_is_negative_or_not_finite_is_refused(
    kind: Callable[..., BiasController], name: str, value: float
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a (finite )?number.*, got {value}"):
        kind(4, **{name: value})


@pytest.mark.parametrize(("kind", "name"), [*GAINS, *POSITIVE, (SMEBUBias, "momentum")])
@pytest.mark.parametrize("value", ["x", None, True, [1e-3]])
def test_a_gain_that_is_no_number_is_refused(kind: Callable[..., BiasController], name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number, got"):
        kind(4, **{name: value})


@pytest.mark.parametrize(("kind", "name"), GAINS)
def test_a_gain_of_zero_leaves_the_bias(kind: Callable[..., BiasController], name: str) -> None:
    assert getattr(kind(4, **{name: 0}), name) == 0


@pytest.mark.parametrize(("kind", "name"), POSITIVE)
def test_a_range_of_zero_is_refused(kind: Callable[..., BiasController], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number greater than 0, got 0"):
        kind(4, **{name: 0})


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("value", [4.0, "4", True, None])
def test_experts_are_an_integer(kind: Callable[..., BiasController], value: object) -> None:
    with pytest.raises(TypeError, match="num_experts must be an integer, got"):
        kind(value)


@pytest.mark.parametrize("name", ["top_k", "num_bins"])
def test_the_counts_of_a_quantile_are_integers(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an integer, got 2.5"):
        QuantileBias(6, **{"top_k": 2, name: 2.5})


@every_controller
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_counts_once_and_balances(make: Callable[[], BiasController], reentrant: bool) -> None:
    moe = moegate.MoE(8, 16, NUM_EXPERTS, RULE, correction_bias=True)
    controller = make()
    hidden = torch.randn(40, 8, requires_grad=True)
    for _ in range(3):
        # Passed through the checkpoint, the routing is that of the first pass, whatever is computed again later.
        out, routing = checkpoint(moe, hidden, use_reentrant=reentrant)
        controller.observe(routing)
        out.sum().backward()
        assert int(controller.load.sum()) == 40 * TOP_K
        assert torch.equal(controller.load, routing.selected_load)
        controller.update(moe.gate.e_score_correction_bias)
    assert moe.gate.e_score_correction_bias.any()
