"""The names of routing in configurations: what decides a rule, under which aliases, and what does not."""

__all__ = [
    "ALIASES",
    "COUNTS",
    "MEGATRON_NAMES",
    "NUMBERS",
    "OTHER_NAMES",
    "SWITCHES",
    "TORCHTITAN_NAMES",
    "UNLESS_FALSE",
]

ALIASES: dict[str, tuple[str, ...]] = {
    "num_experts": (
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
        "num_moe_experts",
        "num_routed_experts",
    ),
    "num_experts_per_tok": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "top_k",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "num_selected_experts",
        "top_k_experts",
        "moe_router_topk",
    ),
    "scoring_func": (
        "scoring_func",
        "score_func",
        "score_function",
        "moe_router_score_function",
        "router_score_function",
        "expert_selection_fn",
    ),
    "n_group": ("n_group", "num_groups", "num_expert_group", "num_expert_groups", "moe_router_num_groups"),
    "topk_group": ("topk_group", "groups_kept", "num_limited_groups", "moe_router_group_topk"),
    "norm_topk_prob": (
        "norm_topk_prob",
        "route_norm",
        "norm_topk",
        "renormalize",
        "moe_norm_topk_prob",
        "moe_renormalize",
    ),
    "routed_scaling_factor": (
        "routed_scaling_factor",
        "router_scaling_factor",
        "route_scale",
        "moe_routed_scaling_factor",
        "moe_router_scaling_factor",
        "moe_router_topk_scaling_factor",
    ),
    "topk_method": ("topk_method",),
    "router_jitter_noise": ("router_jitter_noise", "moe_input_jitter_eps", "moe_jitter_eps"),
    "input_jitter_noise": ("input_jitter_noise",),
    "moe_norm_min": ("moe_norm_min",),
    "moe_normalize_expert_weights": ("moe_normalize_expert_weights",),
    "score_before_experts": (
        "score_before_experts",
        "moe_apply_probs_on_input",
        "moe_apply_router_weight_on_input",
    ),
    "moe_router_pre_softmax": ("moe_router_pre_softmax",),
    "moe_expert_capacity_factor": ("moe_expert_capacity_factor",),
    "moe_token_drop_policy": ("moe_token_drop_policy",),
    "model_type": ("model_type",),
}
"""The names that decide a rule, each with the aliases that other configurations use."""

# What is not listed here is text.
COUNTS = {"num_experts", "num_experts_per_tok", "n_group", "topk_group"}
"""The names whose value must be an integer."""
NUMBERS = {
    "routed_scaling_factor",
    "router_jitter_noise",
    "input_jitter_noise",
    "moe_expert_capacity_factor",
    "moe_norm_min",
    "moe_normalize_expert_weights",
}
"""The names whose value must be a number."""
SWITCHES = {"norm_topk_prob", "score_before_experts", "moe_router_pre_softmax"}
"""The names whose value must be true or false."""

MEGATRON_NAMES = frozenset(
    (
        "moe_router_topk",
        "moe_router_score_function",
        "moe_router_pre_softmax",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_topk_scaling_factor",
        "moe_router_enable_expert_bias",
        "moe_router_bias_update_rate",
        "moe_router_dtype",
        "moe_router_force_load_balancing",
        "moe_router_fusion",
        "moe_router_load_balancing_type",
        "moe_router_padding_for_fp8",
        "moe_router_padding_for_quantization",
    )
)
"""The router's names in Megatron-LM; any of them brings Megatron's defaults."""

TORCHTITAN_NAMES = frozenset(
    (
        "score_func",
        "route_norm",
        "route_scale",
        "num_expert_groups",
        "num_limited_groups",
        "score_before_experts",
        "load_balance_coeff",
    )
)
"""The router's names in torchtitan; any of them brings torchtitan's defaults."""

OTHER_NAMES = MEGATRON_NAMES | frozenset(
    (
        "hidden_size",
        "intermediate_size",
        "hidden_act",
        "num_hidden_layers",
        "moe_intermediate_size",
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "shared_expert_intermediate_size",
        "decoder_sparse_step",
        "first_k_dense_replace",
        "mlp_only_layers",
        "mlp_layer_types",
        "moe_layer_freq",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "output_router_logits",
        "expert_capacity",
        "load_balance_coeff",
        "use_grouped_mm",
        "num_layers",
        "ffn_hidden_size",
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "moe_shared_expert_overlap",
        "moe_shared_expert_gate",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "moe_enable_routing_replay",
        "moe_grouped_gemm",
        "moe_permute_fusion",
        "moe_token_dispatcher_type",
        "moe_pad_expert_input_to_capacity",
        "moe_per_layer_logging",
        "moe_layer_recompute",
        "moe_latent_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
    )
)
"""Names of a mixture of experts that have no part in its rule; they are accepted and left alone."""

UNLESS_FALSE = {
    "moe_router_force_load_balancing": "it replaces the router by random choices; the recipe random_routing does that",
    "_debug_force_load_balance": "it replaces the router by a round robin, which no rule holds",
    "debug_force_load_balance": "it replaces the router by a round robin, which no rule holds",
    "moe_expert_rank_capacity_factor": "a limit per rank is no part of a rule; moe_expert_capacity_factor is",
    "output_multiplier": "a rule takes the logits as they are: multiply them in the gate and leave the name out",
    "moe_router_logit_softcapping": "a rule takes the logits as they are: cap them in the gate and leave the name out",
}
"""Names that would change the routing in a way that a rule can't hold; only a false value is accepted."""
