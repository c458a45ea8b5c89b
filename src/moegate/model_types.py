"""What the code of model families does and their configurations do not say, checked against transformers by a test.

What a gate does to its logits (a multiplier, a soft cap, a norm of what it reads) is no part of a rule: it is given the
logits. Left out, so that they are refused, are families whose router no rule holds; ``moegate.hf.families`` says why.
"""

from typing import Any

__all__ = ["MODEL_TYPES", "OWN_NAMES", "PARTS", "SCORING_WORDS"]

_SOFTMAX = {"scoring_func": "softmax"}
_SOFTMAX_RENORMALIZED = {"scoring_func": "softmax", "norm_topk_prob": True}
_SOFTMAX_PLAIN = {"scoring_func": "softmax", "norm_topk_prob": False}
_SOFTMAX_SELECTED = {"scoring_func": "softmax_selected"}
_SIGMOID_RENORMALIZED = {"scoring_func": "sigmoid", "norm_topk_prob": True}
_SIGMOID_GROUPED = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
# A jitter that the configuration names and the code does not draw.
_NO_NOISE = {"router_jitter_noise": 0.0}
_SIGMOID_ON_INPUT = {"scoring_func": "sigmoid", "norm_topk_prob": False, "score_before_experts": True} | _NO_NOISE
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "afmoe": _SIGMOID_RENORMALIZED,
    "aria_text": _SOFTMAX_RENORMALIZED,
    "axk1": _SIGMOID_GROUPED,
    # What its code puts in the place of the scores of dropped groups.
    "axk2": _SIGMOID_GROUPED | {"dropped_score": 0.0},
    "bailing_hybrid": _SIGMOID_GROUPED,
    "beam": _SIGMOID_GROUPED,
    "cohere2_moe": {},
    "dbrx": {"scoring_func": "softmax"},
    "deepseek_ocr2_text": _SOFTMAX_PLAIN,
    "deepseek_v2": _SOFTMAX_PLAIN,
    "deepseek_v3": _SIGMOID_GROUPED,
    "deepseek_v32": _SIGMOID_GROUPED,
    "deepseek_v4": {"norm_topk_prob": True} | _NO_NOISE,
    "diffusion_gemma_text": _SOFTMAX_RENORMALIZED,
    "doge": {"selection": "product_keys", "scoring_func": "softmax_selected"},
    "dots1": _SIGMOID_GROUPED,
    "dots3_note_text": _SIGMOID_GROUPED,
    "dots3_note_vision_encoder": _SIGMOID_RENORMALIZED,
    "ernie4_5_moe": _SOFTMAX_RENORMALIZED,
    "ernie4_5_vl_moe_text": _SOFTMAX_RENORMALIZED,
    "exaone_moe": _SIGMOID_GROUPED,
    "flex_olmo": _SOFTMAX,
    "flint": {"scoring_func": "sigmoid"},
    "gemma4_text": _SOFTMAX_RENORMALIZED,
    "glm4_moe": _SIGMOID_GROUPED,
    "glm4_moe_lite": _SIGMOID_GROUPED,
    "glm4v_moe_text": _SIGMOID_GROUPED,
    "glm5_next_text": _SIGMOID_GROUPED,
    "glm_moe_dsa": _SIGMOID_GROUPED,
    "gpt_oss": _SOFTMAX_SELECTED,
    "granitemoe": _SOFTMAX_SELECTED,
    "granitemoe_swa": _SOFTMAX_SELECTED,
    "granitemoehybrid": _SOFTMAX_SELECTED,
    "granitemoeshared": _SOFTMAX_SELECTED,
    "hunyuan_v1_moe": _SOFTMAX_RENORMALIZED,
    "hy_v3": _SIGMOID_RENORMALIZED,
    "hy_v4": _SIGMOID_GROUPED,
    "inkling_text": {"scoring_func": "sigmoid", "norm_topk_prob": True, "extra": "shared_weights"},
    "inkling2_text": {"norm_topk_prob": True},
    "jamba": _SOFTMAX_PLAIN,
    "jetmoe": _SOFTMAX_SELECTED,
    "kimi_linear": _SIGMOID_GROUPED,
    "kolibri1": {"scoring_func": "sigmoid", "rank_by": "biased_logits"},
    "laguna": _SIGMOID_RENORMALIZED,
    "lfm2_moe": {"scoring_func": "sigmoid", "eps": 1e-6},
    "llama4": _SIGMOID_ON_INPUT,
    "llama4_text": _SIGMOID_ON_INPUT,
    "longcat_flash": _SOFTMAX_PLAIN,
    "mellum": _SOFTMAX,
    "mimo_v2_flash": _SIGMOID_GROUPED,
    "minimax": _SOFTMAX_RENORMALIZED,
    "minimax_m2": _SIGMOID_RENORMALIZED,
    "minimax_m3_vl_text": _SIGMOID_RENORMALIZED | _NO_NOISE,
    "mistral4": {"scoring_func": "softmax", "topk_method": "noaux_tc"},
    "mistral_large4_text": {"scoring_func": "softmax", "norm_topk_prob": True, "topk_method": "noaux_tc"},
    "mixtral": _SOFTMAX_RENORMALIZED,
    "muse_spark_text": _SIGMOID_RENORMALIZED | {"eps": 1e-15},
    "nemotron_h": _SIGMOID_GROUPED,
    "nllb-moe": _SOFTMAX_RENORMALIZED
    | {"num_experts_per_tok": 2, "selection": "second_choice", "capacity": "nllb", "moe_norm_min": 2.0**-23},
    "olmoe": _SOFTMAX,
    "openai_privacy_filter": _SOFTMAX_SELECTED,
    # Its code has two rounds, whatever the configuration says.
    "phimoe": _SOFTMAX_PLAIN | {"num_experts_per_tok": 2, "selection": "sparse_mixer"},
    "qwen2_moe": _SOFTMAX,
    "qwen3_5_moe_text": _SOFTMAX_RENORMALIZED,
    "qwen3_moe": _SOFTMAX,
    "qwen3_next": _SOFTMAX,
    "qwen3_omni_moe_talker_text": _SOFTMAX,
    "qwen3_omni_moe_text": _SOFTMAX,
    "qwen3_vl_moe_text": _SOFTMAX_RENORMALIZED,
    "qwen4_exp_text": _SOFTMAX,
    "solar_open": _SIGMOID_GROUPED,
    "step3p5": _SIGMOID_RENORMALIZED,
    "step3p7": _SIGMOID_RENORMALIZED,
    "switch_transformers": _SOFTMAX_PLAIN | {"num_experts_per_tok": 1, "capacity": "switch"},
    "unlimited_ocr_text": _SOFTMAX_PLAIN,
    "zaya": {"scoring_func": "softmax", "norm_topk_prob": False, "topk_method": "greedy", "extra": "null_expert"},
}
"""What a model's code does and its configuration does not say, by model type."""

# Cohere's softmax goes over the chosen experts, whatever norm_topk_prob says; its sigmoid is everyone's.
SCORING_WORDS: dict[str, dict[str, str]] = {"cohere2_moe": {"softmax": "softmax_selected"}}
"""What a scoring function is called in the configurations of a model type, where its words differ from ours."""

# Names that look like a router's and are not: Nemotron-H has Mamba layers with groups of their own.
OWN_NAMES: dict[str, tuple[str, ...]] = {"nemotron_h": ("n_groups",)}
"""Names of a model type that have nothing to do with its router."""

PARTS: dict[str, str] = {"dbrx": "ffn_config"}
"""Where a model type keeps the names of its router, if not beside the others."""
