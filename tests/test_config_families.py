"""The table of model types beside the configurations of transformers; tests/hf/test_parity.py has the routers."""

import pytest

import moegate
from moegate.config import MODEL_TYPES

transformers = pytest.importorskip("transformers")


def default_config(model_type):
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    # Some models have no experts by default.
    for name in ("num_experts_per_tok", "top_k_experts"):
        if getattr(config, name, 0) is None:
            setattr(config, name, 6)
    return config


def test_table_is_in_step_with_transformers():
    missing = MODEL_TYPES.keys() - set(transformers.CONFIG_MAPPING.keys())
    assert not missing


def test_a_score_that_the_models_code_does_not_use_is_refused():
    with pytest.raises(ValueError, match=r"mixtral.*uses 'softmax'"):
        moegate.RoutingRule.from_config({"model_type": "mixtral", "num_experts_per_tok": 2, "scoring_func": "sigmoid"})


# Muse Spark's multiplier is refused: see test_config.py.
@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES.keys() - {"muse_spark_text"}))
def test_no_name_of_a_default_configuration_looks_misspelt(model_type):
    config = default_config(model_type)
    values = config.to_dict()
    rule = moegate.RoutingRule.from_config(values)
    assert rule == moegate.RoutingRule.from_config(config)
    if model_type != "switch_transformers":
        assert rule == moegate.RoutingRule.from_config({**values, "top_k": 50})


def test_a_soft_cap_on_the_logits_is_refused():
    config = transformers.CONFIG_MAPPING["laguna"](moe_router_logit_softcapping=30.0)
    with pytest.raises(ValueError, match=r"moe_router_logit_softcapping=30.0 can't be honoured"):
        moegate.RoutingRule.from_config(config)
