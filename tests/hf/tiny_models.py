"""A tiny random model of every Mixture-of-Experts family of transformers, built on a CPU in well under a second."""

import importlib
import inspect
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moegate.hf.families import FAMILIES

VOCABULARY = 64
SELECTION_BIAS = r"(score_correction_bias|expert_bias|balancing_biases|bias_correction)$"

# By what a configuration may call it: a configuration takes the names that it has.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "sliding_window": 16,
    "moe_num_experts": 8,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    # Low-rank attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    # Linear attention and state-space layers.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Tiny:
    """How a model is built.

    Attributes:
        model: the name of its class, without the family's prefix.
        changes: of the configuration, where the general sizes don't do.
        without: the general sizes that the configuration does not take.
        inputs: what the model takes; a key of ``INPUTS``.
    """

    model: str = "ForCausalLM"
    changes: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    inputs: str = "tokens"


SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
TEXT = Tiny("TextModel")
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
HYBRID = ["linear_attention", "full_attention"] * 2

FEWER = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 8, "d_rel": 4, "rel_extent": 32}
NLLB = {
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
}

MODELS: dict[str, Tiny] = {
    "aria": Tiny("TextForCausalLM"),
    "beam": Tiny(changes=SPARSE),
    "bailing_hybrid": Tiny(changes={"layer_group_size": 2}),
    "dbrx": Tiny(
        changes={
            "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
        }
    ),
    "deepseek_ocr2": Tiny("TextModel", {"mlp_layer_types": SPARSE["mlp_layer_types"]}),
    "deepseek_v4": Tiny(changes={"mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"], "o_groups": 2}),
    "diffusion_gemma": Tiny("EncoderTextModel"),
    "doge": Tiny(changes={"is_moe": True, "num_experts": 16}),
    "dots3_note": Tiny(changes={"layer_types": ["indexed_attention"] * 4, **SPARSE}),
    "dots3_note vision": Tiny(
        "VisionModel",
        {
            "patch_size": 2,
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "per_layer_config": {1: {"num_local_experts": 4}, 2: {"num_local_experts": 8}, 3: {"num_local_experts": 6}},
        },
        inputs="patches",
    ),
    "dots1": Tiny(changes={"n_shared_experts": 1}),
    "ernie4_5_vl_moe": Tiny("TextModel", {"moe_intermediate_size": [16, 24], **MROPE, **SPARSE}, inputs="modalities"),
    "gemma4": Tiny(changes={"enable_moe_block": True, "hidden_size_per_layer_input": 0}),
    "glm4v_moe": Tiny(
        "TextModel", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
    ),
    "glm5_next": Tiny("TextModel", {"qk_rope_head_dim": 0, "index_kpool": 4, **SPARSE}),
    "granitemoehybrid": Tiny(changes={"layer_types": ["mamba", "attention"] * 2}),
    "jetmoe": Tiny(changes={"kv_channels": 8, "num_key_value_heads": 2}, without=("num_attention_heads",)),
    "inkling": Tiny(changes=FEWER),
    "inkling2": Tiny(changes=FEWER),
    "jamba": Tiny(changes={"attn_layer_period": 2, "attn_layer_offset": 1}),
    "kimi_linear": Tiny(changes={"layer_types": HYBRID}),
    "lfm2_moe": Tiny(changes={"layer_types": ["conv", "full_attention"] * 2}),
    "llama4": Tiny(changes={"interleave_moe_layer_step": 1, "intermediate_size_mlp": 48}),
    "longcat_flash": Tiny(changes={"zero_expert_num": 4, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16}),
    "mimo_v2_flash": Tiny(changes={"num_key_value_heads": 2}),
    "mistral_large4": TEXT,
    "muse_spark": Tiny("TextModel", {"moe_hidden_size": 16}),
    "nemotron_h": Tiny(
        changes={
            "layer_types": ["linear_attention", "moe", "full_attention", "moe"],
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 16,
        }
    ),
    "nllb_moe": Tiny("ForConditionalGeneration", NLLB, inputs="both"),
    "openai_privacy_filter": Tiny("Model"),
    "qwen3_omni_moe": Tiny("ThinkerTextModel"),
    "qwen3_omni_moe talker": Tiny("TalkerModel", {"shared_expert_intermediate_size": 16}, inputs="embeddings"),
    "qwen3_vl_moe": TEXT,
    "qwen4_exp": Tiny(
        changes={
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
    ),
    "step3p7": Tiny("TextModel", SPARSE),
    "switch_transformers": Tiny(
        "ForConditionalGeneration",
        {
            "d_kv": 8,
            "d_ff": 16,
            "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 2,
            "num_decoder_layers": 4,
        },
        inputs="both",
    ),
    "unlimited_ocr": TEXT,
    "vitpose_backbone": Tiny(
        "Backbone",
        {"image_size": [32, 32], "patch_size": [16, 16], "num_experts": 3, "part_features": 8, "mlp_ratio": 2},
        inputs="image",
    ),
    "zaya": Tiny(changes={"num_experts_per_tok": 1, "router_hidden_size": 16}),
}
"""What is special to a family; a second model of a family has a word behind its name."""


def model_class(name: str) -> type[nn.Module]:
    """The class of a family's model."""
    family = name.split(maxsplit=1)[0]
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    ending = MODELS.get(name, Tiny()).model
    classes = [
        value
        for value in vars(modeling).values()
        if inspect.isclass(value) and value.__module__ == modeling.__name__ and hasattr(value, "config_class")
    ]
    # The shortest is the one without another word between the prefix and the ending.
    return min((one for one in classes if one.__name__.endswith(ending)), key=lambda one: len(one.__name__))


def tiny_config(name: str, **changes: Any) -> Any:
    """The configuration of a family's tiny model, with changes."""
    tiny, kind = MODELS.get(name, Tiny()), model_class(name).config_class
    known = set(inspect.signature(kind.__init__).parameters) - set(tiny.without)
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return kind(**sizes | tiny.changes | changes)


def tiny_model(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A family's tiny model in evaluation mode, with random weights and, where it has one, a random selection bias.

    Args:
        name: the family's folder, or one of ``MODELS``.
        seed: of the weights; the caller's generator is left alone.
        changes: of its configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(name)(tiny_config(name, **changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
            for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if re.search(SELECTION_BIAS, path):
                    tensor.normal_(std=0.05)
                elif path.endswith("tid2eid"):
                    _spread(tensor, model.config.n_routed_experts)
    return model


def _spread(table_VK: Tensor, num_experts: int) -> None:
    """Makes a hash table of distinct random experts, in place."""
    table_VK.copy_(torch.rand(len(table_VK), num_experts).argsort(-1)[:, : table_VK.shape[1]])


def _token_ids(seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(seed))


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS: dict[str, Any] = {
    "tokens": lambda seed: {"input_ids": _token_ids(seed)},
    "both": lambda seed: {"input_ids": _token_ids(seed), "decoder_input_ids": _token_ids(seed).flip(0)},
    "embeddings": lambda seed: {"inputs_embeds": _normal(seed, 2, 12, 32)},
    # Text and vision tokens, half and half, go to experts of their own.
    "modalities": lambda seed: {
        "input_ids": _token_ids(seed),
        "moe_mm_token_type_ids": torch.tensor([[0, 1] * 6, [1] * 6 + [0] * 6]),
    },
    "patches": lambda seed: {"pixel_values": _normal(seed, 24, 12), "grid_thw": torch.tensor([[1, 4, 6]])},
    "image": lambda seed: {"pixel_values": _normal(seed, 2, 3, 32, 32), "dataset_index": torch.tensor([0, 2])},
}


def tiny_inputs(name: str, seed: int = 0) -> dict[str, Tensor]:
    """What the family's tiny model takes: two sequences of twelve tokens, or the like."""
    inputs: dict[str, Tensor] = INPUTS[MODELS.get(name, Tiny()).inputs](seed)
    return inputs


def every_model() -> list[str]:
    """The names of all tiny models: one a family at least."""
    return sorted(FAMILIES.keys() | MODELS.keys())
