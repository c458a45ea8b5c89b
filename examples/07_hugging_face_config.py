"""Hugging Face: read the rule from a configuration, load a block's weights, and get the same output."""

import importlib.util

import torch

import moegate


def show_rules() -> None:
    """The rules of some published families, from their default configurations."""
    from transformers import DeepseekV3Config, GptOssConfig, Llama4TextConfig, MixtralConfig, OlmoeConfig

    for config in (MixtralConfig(), OlmoeConfig(), GptOssConfig(), Llama4TextConfig(), DeepseekV3Config()):
        print(f"{config.model_type:<12} {moegate.RoutingRule.from_config(config)}")


def compare_with_a_block(device: torch.device | None) -> None:
    """A small random Mixtral: its first MoE block and ours, with the same weights on the same input."""
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    block = MixtralModel(config).layers[0].mlp.to(device=device).eval()

    rule = moegate.RoutingRule.from_config(config)
    moe = moegate.MoE(config.hidden_size, config.intermediate_size, config.num_local_experts, rule)
    moe.load_state_dict(block.state_dict())  # the same names and shapes, both ways
    moe.to(device=device).eval()

    hidden = torch.randn(2, 7, config.hidden_size, device=device)
    with torch.no_grad():
        difference = (moe(hidden)[0] - block(hidden)).abs().max().item()
    print(f"{', '.join(moe.state_dict())}")
    print(f"largest difference of the outputs: {difference:.1e}")
    assert difference < 1e-5


def main(device: torch.device | None = None) -> None:
    """Show the rules, then compare a layer."""
    if importlib.util.find_spec("transformers") is None:
        print("This example needs transformers 5: pip install 'transformers>=5'.")
        return
    show_rules()
    compare_with_a_block(device)


if __name__ == "__main__":
    main()
