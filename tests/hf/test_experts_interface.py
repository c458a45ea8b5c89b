"""The experts implementation "moegate": what it gives is what each family's own code gives, at every layout."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from tiny_models import every_model, model_class, tiny_inputs, tiny_model
from transformers import AutoModelForCausalLM

import moegate.hf
from moegate.hf import experts_interface

# Those whose experts transformers wrote without its interface.
OUTSIDE = {
    "dbrx", "doge", "jetmoe", "llama4", "longcat_flash", "nllb_moe", "step3p7", "switch_transformers",
    "vitpose_backbone",
}  # fmt: skip
INSIDE = [name for name in every_model() if name not in OUTSIDE]
# The rest are text towers, without a head.
GENERATING = [name for name in INSIDE if model_class(name).__name__.endswith("ForCausalLM")]
# One of each layout: gated, transposed, biased and interleaved, clamped, without a gate, with a norm behind, tanh.
LAYOUTS = ["qwen3_moe", "aria", "gpt_oss", "openai_privacy_filter", "deepseek_v4", "nemotron_h", "muse_spark", "gemma4"]


def experts_of(model):
    return [module for module in model.modules() if "is_transposed" in vars(module)]


def use(model, implementation):
    model.set_experts_implementation(implementation)
    for experts in experts_of(model):
        # A model with a configuration a layer passes the choice on to none of them.
        experts.config._experts_implementation = implementation


def first(output):
    values = output[0]
    return values[0] if isinstance(values, tuple | list) else values


def loss_of(values):
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    return (values.float() * direction).sum()


def gradients(model, inputs):
    model.zero_grad()
    values = first(model(**inputs))
    loss_of(values).backward()
    return values.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def own_code_is_an_error(monkeypatch):
    """The families' own experts must not serve a model that asked for moegate."""

    def refuse(_):
        raise AssertionError("the module's own forward ran")

    monkeypatch.setattr(experts_interface, "_own_forward", refuse)


@pytest.mark.usefixtures("own_code_is_an_error")
@pytest.mark.parametrize("name", INSIDE)
def test_outputs_and_gradients_are_the_models_own(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    assert experts_of(model)
    use(model, "eager")
    expected, expected_grads = gradients(model, inputs)
    use(model, "moegate")
    values, grads = gradients(model, inputs)
    assert (values - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert grads.keys() == expected_grads.keys()
    largest = max(grad.abs().max() for grad in expected_grads.values())
    for parameter, grad in grads.items():
        own = expected_grads[parameter]
        assert (grad - own).abs().max() <= 2e-4 * own.abs().max() + 1e-6 * largest, parameter
    with torch.no_grad():
        assert (first(model(**inputs)) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_families_outside_the_interface_are_left_alone(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    assert not experts_of(model)
    with torch.no_grad():
        expected = first(model(**inputs))
        model.set_experts_implementation("moegate")
        assert torch.equal(first(model(**inputs)), expected)


@pytest.mark.usefixtures("own_code_is_an_error")
@pytest.mark.parametrize("name", GENERATING)
def test_generates_the_same_tokens(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    inputs = inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
    told = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    use(model, "eager")
    expected = model.generate(**inputs, **told)
    use(model, "moegate")
    assert torch.equal(model.generate(**inputs, **told), expected)


def one_of(name, dtype=torch.float32, tokens=5):
    """The first experts of a family's model, and what they may receive: tokens with two of eight experts each."""
    experts = experts_of(tiny_model(name))[0].to(dtype)
    width = getattr(experts, "hidden_dim", None) or experts.hidden_size
    if name == "nemotron_h":
        width = experts.up_proj.shape[-1]
    hidden = torch.randn(tokens, width).to(dtype)
    index = torch.stack([torch.randperm(experts.num_experts)[:2] for _ in range(tokens)])
    return experts, hidden, index, torch.rand(tokens, 2).to(dtype)


def run(experts, implementation, *received):
    experts.config._experts_implementation = implementation
    return experts(*received)


@pytest.mark.usefixtures("own_code_is_an_error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("tokens", [5, 100])
def test_as_exact_as_the_models_own_code(name, dtype, tokens):
    experts, hidden, index, weights = one_of(name, dtype, tokens)
    exact = run(copy.deepcopy(experts).double(), "eager", hidden.double(), index, weights.double())
    own = run(experts, "eager", hidden, index, weights)
    ours = run(experts, "moegate", hidden, index, weights)
    with torch.no_grad():
        unseen = run(experts, "moegate", hidden, index, weights)
    assert ours.dtype is unseen.dtype is dtype
    # This family's own code computes in float32, whatever its type.
    finest = torch.float32 if name == "openai_privacy_filter" and dtype is torch.float64 else dtype
    rounding = 4 * torch.finfo(finest).eps * exact.abs().max()
    allowed = 1.5 * (own.double() - exact).abs().max() + rounding
    assert (ours.double() - exact).abs().max() <= allowed
    assert (unseen.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("name", LAYOUTS)
def test_slots_without_an_expert_here(name):
    experts, hidden, index, weights = one_of(name)
    foreign = index.clone()
    foreign[0, 0], foreign[1], foreign[2, 1] = -1, experts.num_experts, experts.num_experts + 3
    weights.requires_grad_()
    out = run(experts, "moegate", hidden, foreign, weights)
    kept = torch.where((foreign < 0) | (foreign >= experts.num_experts), 0.0, weights.detach())
    assert torch.allclose(out, run(experts, "eager", hidden, index, kept), atol=1e-6)
    out.sum().backward()
    assert torch.equal(weights.grad == 0, kept == 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_tokens(name):
    experts, hidden, index, weights = one_of(name)
    hidden = hidden[:0].requires_grad_()
    out = run(experts, "moegate", hidden, index[:0], weights[:0])
    assert out.shape == hidden.shape
    out.sum().backward()
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize("name", LAYOUTS)
def test_strides_and_index_types(name):
    experts, hidden, index, weights = one_of(name)
    expected = run(experts, "moegate", hidden, index, weights)
    spread = torch.empty(5, 2 * hidden.shape[1])[:, ::2].copy_(hidden)
    for kind in (torch.int32, torch.int16, torch.uint8):
        got = run(experts, "moegate", spread, index.mT.contiguous().mT.to(kind), weights.mT.contiguous().mT)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_autocast(name):
    experts, hidden, index, weights = one_of(name)
    exact = run(experts, "eager", hidden, index, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = run(experts, "eager", hidden, index, weights)
        ours = run(experts, "moegate", hidden, index, weights)
    assert ours.dtype is own.dtype is torch.float32
    assert not torch.equal(ours, run(experts, "moegate", hidden, index, weights))
    assert (ours - exact).abs().max() <= 2 * (own - exact).abs().max()
    ours.sum().backward()
    assert experts.down_proj.grad.dtype is torch.float32


def test_hidden_states_of_another_type_than_the_weights():
    experts, hidden, index, weights = one_of("mixtral", torch.bfloat16)
    out = run(experts, "moegate", hidden.float(), index, weights.float())
    assert out.dtype is torch.float32
    assert torch.equal(out, run(experts, "moegate", hidden, index, weights).float())


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "nemotron_h"])
@pytest.mark.usefixtures("compiler")
def test_compiles_in_one_graph(name):
    experts, hidden, index, weights = one_of(name)
    expected = run(experts, "eager", hidden, index, weights)
    expected.sum().backward()
    grad = experts.down_proj.grad.clone()
    experts.zero_grad()
    experts.config._experts_implementation = "moegate"
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    index[4, 1] = experts.num_experts
    expected = run(experts, "moegate", hidden, index, weights)
    out = compiled(hidden, index, weights)
    assert torch.allclose(out, expected, atol=1e-6)
    index[4, 1] = index[4, 0]
    compiled(hidden, index, weights).sum().backward()
    assert experts.down_proj.grad.shape == grad.shape


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_gradient_checkpointing(name):
    model, inputs = tiny_model(name).train(), tiny_inputs(name)
    use(model, "moegate")
    _, expected = gradients(model, inputs)
    model.activation_checkpointing_enable()
    _, grads = gradients(model, inputs)
    assert grads.keys() == expected.keys()
    for parameter, grad in grads.items():
        assert torch.allclose(grad, expected[parameter], atol=1e-6), parameter


def test_from_pretrained_takes_the_name_and_files_do_not_keep_it(tmp_path):
    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    model.set_experts_implementation("moegate")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moegate")
    assert again.config._experts_implementation == "moegate"
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert "moegate" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._experts_implementation != "moegate"


def test_offloaded_weights_are_brought():
    from accelerate import cpu_offload

    model, inputs = tiny_model("mixtral"), tiny_inputs("mixtral")
    model.set_experts_implementation("moegate")
    with torch.no_grad():
        expected = model(**inputs).logits
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert experts_of(model)[0].down_proj.is_meta
        assert torch.equal(model(**inputs).logits, expected)


def test_meta_weights_are_named():
    experts, hidden, index, weights = one_of("mixtral")
    with pytest.raises(RuntimeError, match="meta device while the hidden states are on cpu"):
        run(experts.to("meta"), "moegate", hidden, index, weights)


class Packed(torch.Tensor):
    """A weight of a kind that only its owner can read, as quantization libraries have them."""


@pytest.mark.parametrize("change", ["subclass", "integers"])
def test_foreign_weights_run_the_modules_own_code_and_say_so(change, monkeypatch):
    experts_interface._warn.cache_clear()
    experts, hidden, index, weights = one_of("mixtral")
    expected = run(experts, "eager", hidden, index, weights)
    if change == "subclass":
        experts.down_proj = nn.Parameter(experts.down_proj.detach().as_subclass(Packed))
    else:
        monkeypatch.setattr(type(experts).forward, "__wrapped__", lambda *_: expected)
        experts.down_proj = nn.Parameter(experts.down_proj.detach().to(torch.int8), requires_grad=False)
    with pytest.warns(UserWarning, match="MixtralExperts run their own code and not moegate's: their weights are"):
        out = run(experts, "moegate", hidden, index, weights)
    assert torch.allclose(out.as_subclass(torch.Tensor), expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(experts, "moegate", hidden, index, weights)


def test_experts_in_8_bits_run_their_own_code():
    from transformers.integrations import finegrained_fp8, use_experts_implementation

    experts_interface._warn.cache_clear()

    class InEightBits(finegrained_fp8.FP8Experts):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return 2 * hidden_states

    kind = use_experts_implementation(InEightBits, experts_interface=finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS)
    experts = kind(tiny_model("mixtral").config)
    _, hidden, index, weights = one_of("mixtral")
    with pytest.warns(UserWarning, match="InEightBits run their own code and not moegate's: .* of torch.float8"):
        assert torch.equal(run(experts, "moegate", hidden, index, weights), 2 * hidden)


def test_a_hook_on_the_activation_sees_it():
    experts, hidden, index, weights = one_of("mixtral")
    seen = []
    experts.act_fn.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    run(experts, "moegate", hidden, index, weights)
    assert seen == [(10, experts.intermediate_dim)]


def test_parametrised_weights_are_made_once_a_call():
    experts, hidden, index, weights = one_of("mixtral")
    expected = run(experts, "moegate", 2 * hidden, index, weights)
    made = []

    class Twice(nn.Module):
        def forward(self, weight):
            made.append(weight.shape)
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(experts, "gate_up_proj", Twice())
    made.clear()
    assert torch.allclose(run(experts, "moegate", hidden, index, weights), expected, atol=1e-4)
    assert len(made) == 1


def test_hooks_on_the_experts_see_what_they_received():
    model, inputs = tiny_model("deepseek_v3"), tiny_inputs("deepseek_v3")
    model.set_experts_implementation("moegate")
    seen = []
    for experts in experts_of(model):
        experts.register_forward_pre_hook(lambda _, args: seen.append(args[1].shape))
    model(**inputs)
    assert seen == [(24, 2)] * 3


def test_moe_layers_and_the_implementation_go_together():
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation("moegate")
    assert len(moegate.hf.moe_layers(model)) == 4
    assert math.isfinite(model(**tiny_inputs("qwen3_moe")).logits.sum().item())
