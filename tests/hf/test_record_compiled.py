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


def test_a_model_that_is_compiled_already(model):
    """A wrapped model whose forward was compiled before; what is recorded is the model inside."""
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    ids = tokens()
    with torch.no_grad():
        compiled(ids)
        with record(model) as recording:
            out = compiled(ids).logits
    truth = Truth(plain)
    with torch.no_grad():
        expected = plain(ids).logits
    truth.remove()
    rows = torch.stack([call[0].index for call in truth.calls.values()], dim=1)
    assert recording.num_calls == 1
    assert torch.equal(recording.indices.long(), rows)
    torch.testing.assert_close(out, expected)


def test_names_of_a_compiled_model(model):
    compiled = torch.compile(model, backend="eager")
    assert record(compiled).layers == ("model.layers.0.mlp",)


def test_a_block_that_is_compiled_in_place(model):
    """Only the part around the experts: as fast to compile as it gets."""
    block = model.model.layers[0].mlp
    block.compile(backend="eager")
    ids = tokens()
    with torch.no_grad():
        model(ids)
        with record(model) as recording:
            model(ids)
        assert recording.load.sum() == 24
        # Nothing is seen any more.
        model(ids)
    assert recording.load.sum() == 24


def test_a_block_that_is_compiled_while_recording(model):
    ids = tokens()
    block = model.model.layers[0].mlp
    with record(model) as recording:
        model.train()
        block.compile(backend="aot_eager")
        for _ in range(2):
            model(ids, labels=ids).loss.backward()
    model(ids, labels=ids).loss.backward()
    assert recording.num_calls == 2
    assert recording.load.sum() == 48
    assert torch.equal(recording.indices[:12], recording.indices[12:])
