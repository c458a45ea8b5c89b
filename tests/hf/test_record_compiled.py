"""Recording a compiled model: whether it was compiled before or during the recording, and what is left afterwards."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import tiny_model
from truth import Truth

from moegate.hf import record

pytestmark = pytest.mark.filterwarnings("ignore")  # what the compiler warns of is its own


@pytest.fixture
def model(compiler):
    torch._dynamo.config.capture_scalar_outputs = False
    return tiny_model("qwen3_moe", num_hidden_layers=1)


def tokens():
    return torch.randint(3, 60, (2, 6))


def compile_of(model, how):
    if how == "wrapper":
        return torch.compile(model, backend="eager")
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("how", "recorded"), [("wrapper", "the model inside"), ("wrapper", "the compiled one"), ("in place", "the model")]
)
def test_a_model_that_is_compiled_already(model, how, recorded):
    plain = copy.deepcopy(model)
    compiled = compile_of(model, how)
    ids = tokens()
    with torch.no_grad():
        expected = compiled(ids).logits
        with record(compiled if recorded == "the compiled one" else model) as recording:
            out = compiled(ids).logits
        after = compiled(ids).logits
    truth = Truth(plain)
    with torch.no_grad():
        plain(ids)
    truth.remove()
    rows = torch.stack([call[0].index for call in truth.calls.values()], dim=1)
    assert recording.layers == ("model.layers.0.mlp",)
    assert recording.num_calls == 1
    assert torch.equal(recording.indices.long(), rows)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(after, expected)


def test_a_model_that_is_compiled_while_recording(model):
    ids = tokens()
    with record(model) as recording:
        model.train()
        compiled = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            compiled(ids, labels=ids).loss.backward()
    compiled(ids, labels=ids).loss.backward()
    assert recording.num_calls == 2
    assert recording.load.sum(dim=1).tolist() == [48]
    assert torch.equal(recording.indices[:12], recording.indices[12:])
