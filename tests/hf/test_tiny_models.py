"""The tiny models that the other tests of this folder stand on: each builds, runs, and repeats itself."""

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import every_model, tiny_inputs, tiny_model


@pytest.mark.parametrize("name", every_model())
def test_runs(name):
    model = tiny_model(name)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # A mask of -inf is no weight.
        assert not tensor.isnan().any(), path
    with torch.no_grad():
        values = model(**tiny_inputs(name))[0]
    values = values[0] if isinstance(values, tuple) else values
    assert values.isfinite().all()
    assert values.std() > 0


def test_the_same_seed_gives_the_same_model_and_draws_nothing_from_the_caller():
    state = torch.random.get_rng_state()
    one, two, other = tiny_model("glm4_moe"), tiny_model("glm4_moe"), tiny_model("glm4_moe", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, mine), (_, same), (_, another) in zip(
        one.state_dict().items(), two.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, same), name
        if mine.ndim > 1 or "correction" in name:
            assert not torch.equal(mine, another), name
