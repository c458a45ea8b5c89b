"""Every Mixture-of-Experts architecture of transformers, a row a block: where its parts are and what is special."""

from typing import Any

from moegate.hf.family import Block

__all__ = ["FAMILIES"]

_ON_GATE = "gate.e_score_correction_bias"
_ON_BLOCK = "e_score_correction_bias"
_ON_STATICS = "gate.moe_statics.e_score_correction_bias"

_NOISE_BEFORE = (
    "training puts a uniform noise on what the whole block reads, experts included, if router_jitter_noise is"
)
_NOISE_OF_BLOCK: dict[str, Any] = {"rule": {"router_jitter_noise": None}, "special": _NOISE_BEFORE}
_NORMED: dict[str, Any] = {
    "gate": "router",
    "weight": "proj.weight",
    "logits": "normed",
    "expert_scale": "router.per_expert_scale",
    "special": "the gate reads the residual stream, normed and scaled, the experts what their own norm makes of it",
}
_SCALED_AFTER: dict[str, Any] = {
    "scaled_after": "routed_scaling_factor",
    "special": "the scale is put on what the experts return, not on their weights",
}


def _deepseek_v3(name: str, model_type: str, shared: str | None = "shared_experts", **more: Any) -> Block:
    """A block after the pattern of DeepSeek-V3, which most families with a selection bias follow."""
    return Block(name, model_type, bias=_ON_GATE, shared=shared, logits="linear_float32", **more)


FAMILIES: dict[str, tuple[Block, ...]] = {
    "afmoe": (
        Block(
            "AfmoeSparseMoeBlock",
            "afmoe",
            gate="router",
            bias="expert_bias",
            shared="shared_experts",
            weight="gate.weight",
        ),
    ),
    "aria": (Block("AriaTextMoELayer", "aria_text", gate="router", shared="shared_experts"),),
    "axk1": (_deepseek_v3("AXK1MoE", "axk1"),),
    "axk2": (
        _deepseek_v3(
            "AXK2MoE",
            "axk2",
            special="an expert of a dropped group has the score 0, so that it goes before one of a kept group whose "
            "biased score is negative",
        ),
    ),
    "bailing_hybrid": (_deepseek_v3("BailingHybridMoE", "bailing_hybrid"),),
    "beam": (_deepseek_v3("BeamMoE", "beam", shared=None, **_SCALED_AFTER),),
    "cohere2_moe": (Block("Cohere2MoeSparseMoeBlock", "cohere2_moe", shared="shared_experts"),),
    "dbrx": (
        Block(
            "DbrxFFN",
            "dbrx",
            gate="router",
            weight="layer.weight",
            receives="dbrx",
            config="ffn_config",
            special="the noise of the router, which training draws if moe_jitter_eps is, reaches the experts too",
        ),
    ),
    "deepseek_ocr2": (
        Block("DeepseekOcr2TextMoe", "deepseek_ocr2_text", shared="shared_experts", logits="linear_float32"),
    ),
    "deepseek_v2": (Block("DeepseekV2Moe", "deepseek_v2", shared="shared_experts", logits="linear_float32"),),
    "deepseek_v3": (_deepseek_v3("DeepseekV3MoE", "deepseek_v3"),),
    "deepseek_v32": (_deepseek_v3("DeepseekV32MoE", "deepseek_v32"),),
    "deepseek_v4": (
        Block(
            "DeepseekV4SparseMoeBlock",
            "deepseek_v4",
            bias=_ON_GATE,
            shared="shared_experts",
            hash_table="gate.tid2eid",
            special="the first layers route by a table of token ids, weighted by the gate",
        ),
    ),
    "diffusion_gemma": (
        Block("DiffusionGemmaEncoderTextLayer", "diffusion_gemma_text", **_NORMED),
        Block("DiffusionGemmaDecoderTextLayer", "diffusion_gemma_text", **_NORMED),
    ),
    "doge": (
        Block(
            "DogeCDMoE",
            "doge",
            gate="router_gate",
            experts="down_embed",
            logits="product_keys",
            receives="doge",
            special="an expert is a pair of keys; the logits of a batch are split between the keys across its tokens, "
            "so that what a token chooses depends on the others",
        ),
    ),
    "dots1": (_deepseek_v3("Dots1MoE", "dots1"),),
    "dots3_note": (
        _deepseek_v3("Dots3NoteTextMoE", "dots3_note_text"),
        Block(
            "Dots3NoteVisionMoE",
            "dots3_note_vision_encoder",
            bias=_ON_BLOCK,
            logits="linear_float32",
            special="layers have different numbers of experts",
        ),
    ),
    "ernie4_5_moe": (
        Block(
            "Ernie4_5_MoeSparseMoeBlock",
            "ernie4_5_moe",
            bias=_ON_STATICS,
            shared="shared_experts",
            logits="linear_float32_always",
            special="the bias is a parameter, [1, E]",
        ),
    ),
    "ernie4_5_vl_moe": (
        Block(
            "Ernie4_5_VLMoeSparseMoeBlock",
            "ernie4_5_vl_moe_text",
            bias=_ON_STATICS,
            logits="linear_float32_always",
            special="text and vision tokens have gates and experts of their own, two layers in a block, and share the "
            "shared experts of that block; the bias is a parameter, [1, E]",
        ),
    ),
    "exaone_moe": (_deepseek_v3("ExaoneMoeSparseMoEBlock", "exaone_moe"),),
    "flex_olmo": (Block("FlexOlmoSparseMoeBlock", "flex_olmo"),),
    "flint": (Block("FlintSparseMoeBlock", "flint", shared="shared_expert", logits="linear_float32_always"),),
    "gemma4": (Block("Gemma4TextDecoderLayer", "gemma4_text", **_NORMED),),
    "glm4_moe": (_deepseek_v3("Glm4MoeMoE", "glm4_moe"),),
    "glm4_moe_lite": (_deepseek_v3("Glm4MoeLiteMoE", "glm4_moe_lite"),),
    "glm4v_moe": (_deepseek_v3("Glm4vMoeTextMoE", "glm4v_moe_text"),),
    "glm5_next": (_deepseek_v3("Glm5NextTextMoE", "glm5_next_text"),),
    "glm_moe_dsa": (_deepseek_v3("GlmMoeDsaMoE", "glm_moe_dsa"),),
    "gpt_oss": (
        Block("GptOssMLP", "gpt_oss", gate="router", special="the gate has a bias of its own, part of the logits"),
    ),
    "granitemoe": (Block("GraniteMoeMoE", "granitemoe", gate="router"),),
    "granitemoe_swa": (Block("GraniteMoeSWAMoE", "granitemoe_swa", gate="router"),),
    "granitemoehybrid": (Block("GraniteMoeHybridMoE", "granitemoehybrid", gate="router"),),
    "granitemoeshared": (Block("GraniteMoeSharedMoE", "granitemoeshared", gate="router"),),
    "hunyuan_v1_moe": (
        Block(
            "HunYuanMoEV1Moe",
            "hunyuan_v1_moe",
            shared="shared_mlp",
            weight="wg.weight",
            special="layers may have different numbers of experts and choices",
        ),
    ),
    "hy_v3": (Block("HYV3MoE", "hy_v3", bias=_ON_BLOCK, shared="shared_experts", logits="linear_float32"),),
    "hy_v4": (_deepseek_v3("HYV4MoE", "hy_v4"),),
    "inkling": (
        Block(
            "InklingMoE",
            "inkling_text",
            bias=_ON_GATE,
            shared="shared_experts",
            logits="linear_float32_always",
            expert_scale="gate.global_scale",
            special="the shared experts have logits too, and all that run are weighted together; one learned factor is "
            "on all weights",
        ),
    ),
    "inkling2": (Block("Inkling2SparseMoeBlock", "inkling2_text", bias=_ON_GATE),),
    "jamba": (Block("JambaSparseMoeBlock", "jamba", gate="router"),),
    "jetmoe": (
        Block("JetMoeMoE", "jetmoe", gate="router", experts="output_linear", weight="layer.weight", receives="jetmoe"),
        Block(
            "JetMoeMoA",
            "jetmoe",
            gate="router",
            experts="output_linear",
            weight="layer.weight",
            receives="jetmoe",
            special="its experts are the query and output projections of the attention; nothing calls the block",
        ),
    ),
    "kimi_linear": (_deepseek_v3("KimiLinearMoE", "kimi_linear"),),
    "kolibri1": (_deepseek_v3("Kolibri1SparseMoeBlock", "kolibri1", special="the bias is added to the logits"),),
    "laguna": (
        Block(
            "LagunaSparseMoeBlock",
            "laguna",
            bias=_ON_GATE,
            shared="shared_experts",
            logits="soft_capped",
            rule={"moe_router_logit_softcapping": None},
            scaled_after="routed_scaling_factor",
            special=f"{_SCALED_AFTER['special']}; the gate may cap its logits; the bias is a parameter",
        ),
    ),
    "lfm2_moe": (Block("Lfm2MoeSparseMoeBlock", "lfm2_moe", bias="expert_bias"),),
    "llama4": (
        Block(
            "Llama4TextMoe",
            "llama4_text",
            gate="router",
            shared="shared_expert",
            receives="dense_scores",
            special="the weight is put on what an expert reads; every expert runs on every token, on zeros where it is "
            "not chosen",
        ),
    ),
    "longcat_flash": (
        Block(
            "LongcatFlashMoE",
            "longcat_flash",
            gate="router",
            bias="router.e_score_correction_bias",
            weight="classifier.weight",
            logits="linear_float32",
            special="the last zero_expert_num experts return what they read",
        ),
    ),
    "mellum": (Block("MellumSparseMoeBlock", "mellum"),),
    "mimo_v2_flash": (_deepseek_v3("MiMoV2FlashMoE", "mimo_v2_flash", shared=None),),
    "minimax": (Block("MiniMaxSparseMoeBlock", "minimax", **_NOISE_OF_BLOCK),),
    "minimax_m2": (Block("MiniMaxM2SparseMoeBlock", "minimax_m2", bias=_ON_BLOCK, **_NOISE_OF_BLOCK),),
    "minimax_m3_vl": (
        Block(
            "MiniMaxM3VLSparseMoeBlock", "minimax_m3_vl_text", bias=_ON_GATE, shared="shared_experts", **_SCALED_AFTER
        ),
    ),
    "mistral4": (Block("Mistral4MoE", "mistral4", shared="shared_experts"),),
    "mistral_large4": (
        Block("MistralLarge4TextMoE", "mistral_large4_text", shared="shared_experts", logits="linear_float32"),
    ),
    "mixtral": (Block("MixtralSparseMoeBlock", "mixtral", **_NOISE_OF_BLOCK),),
    "muse_spark": (
        Block(
            "MuseSparkMoE",
            "muse_spark_text",
            bias=_ON_GATE,
            logits="multiplied",
            rule={"output_multiplier": None},
            special="the gate multiplies its logits by output_multiplier; the experts read a projection of what the "
            "block reads",
        ),
    ),
    "nemotron_h": (
        _deepseek_v3("NemotronHMoE", "nemotron_h", special="the experts may read and write a narrower latent space"),
    ),
    "nllb_moe": (
        Block(
            "NllbMoeSparseMLP",
            "nllb-moe",
            gate="router",
            weight="classifier.weight",
            logits="linear_own_type",
            receives="nllb",
            rule={"num_experts_per_tok": 2},
            special="the router drops what an expert has no room for, and weighs what is left, as from_config reads it",
            no_rule="the experts of transformers 5.23 read the router's mask of 0 and 1 as numbers of experts, so that "
            "expert 1 runs on every token with its first weight, expert 0 with its second, and no other runs",
        ),
    ),
    "olmoe": (Block("OlmoeSparseMoeBlock", "olmoe"),),
    "openai_privacy_filter": (
        Block(
            "OpenAIPrivacyFilterMLP",
            "openai_privacy_filter",
            gate="router",
            logits="linear_float32",
            scaled_after="num_experts",
            special="the weights are divided by top_k, and what the experts return is multiplied by it; the gate has a "
            "bias of its own, part of the logits",
        ),
    ),
    "phimoe": (
        Block(
            "PhimoeSparseMoeBlock",
            "phimoe",
            gate="router",
            rule={"num_experts_per_tok": 2},
            special="SparseMixer: two experts, whatever the configuration says, which training draws; if "
            "input_jitter_noise is, training puts a noise on what the block reads, experts included, and the router "
            "another one",
        ),
    ),
    "qwen2_moe": (Block("Qwen2MoeSparseMoeBlock", "qwen2_moe", shared="shared_expert"),),
    "qwen3_5_moe": (Block("Qwen3_5MoeSparseMoeBlock", "qwen3_5_moe_text", shared="shared_expert"),),
    "qwen3_moe": (Block("Qwen3MoeSparseMoeBlock", "qwen3_moe"),),
    "qwen3_next": (Block("Qwen3NextSparseMoeBlock", "qwen3_next", shared="shared_expert"),),
    "qwen3_omni_moe": (
        Block("Qwen3OmniMoeThinkerTextSparseMoeBlock", "qwen3_omni_moe_text"),
        Block("Qwen3OmniMoeTalkerTextSparseMoeBlock", "qwen3_omni_moe_talker_text", shared="shared_expert"),
    ),
    "qwen3_vl_moe": (Block("Qwen3VLMoeTextSparseMoeBlock", "qwen3_vl_moe_text"),),
    "qwen4_exp": (Block("Qwen4ExpTextSparseMoeBlock", "qwen4_exp_text", shared="shared_expert"),),
    "solar_open": (_deepseek_v3("SolarOpenMoE", "solar_open"),),
    "step3p7": (Block("Step3p7SparseMoeBlock", "step3p5", bias=_ON_GATE, shared="shared_experts", **_SCALED_AFTER),),
    "switch_transformers": (
        Block(
            "SwitchTransformersSparseMLP",
            "switch_transformers",
            gate="router",
            weight="classifier.weight",
            logits="linear_own_type",
            receives="switch",
            rule={"num_experts_per_tok": 1},
            special="an expert takes expert_capacity tokens of each sequence, the rest go to none; the noise that the "
            "router draws in training reaches the experts too",
        ),
    ),
    "unlimited_ocr": (
        Block("UnlimitedOcrTextMoe", "unlimited_ocr_text", shared="shared_experts", logits="linear_float32"),
    ),
    "vitpose_backbone": (
        Block(
            "VitPoseBackboneMoeMLP",
            "vitpose_backbone",
            gate=None,
            weight=None,
            receives="dataset",
            rule={"num_experts_per_tok": 1},
            special="the caller names the data set of an image, and that is its expert",
            no_rule="nothing routes: the caller names the expert of an image",
        ),
    ),
    "zaya": (
        Block(
            "ZayaSparseMoeBlock",
            "zaya",
            bias="gate.balancing_biases",
            weight=None,
            logits="recurrent",
            receives="skips",
            special="the last of the router's classes is to skip, which reaches the experts as expert 0 with the "
            "weight 0; the router is an MLP that reads the router of the layer before",
        ),
    ),
}
"""By the folder of the modelling code in transformers."""
