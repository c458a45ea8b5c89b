// The kernels of topk_gate, for rows begin to end; the operator checks their arguments.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace moegate {

enum class GateElement : int64_t { float32, bfloat16, float16 };

// Numbered like SCORES in Python.
enum class GateScore : int64_t { softmax, softmax_selected, sigmoid, sqrt_softplus, identity, relu };

struct GateRule {
  int64_t top_k;
  int64_t num_groups;
  int64_t groups_kept;
  double eps;
  float scale;
  GateScore score;        // what the selection looks at
  GateScore weight_score; // what the weights are made of
  bool groups_by_top2_sum;
  bool ranks_scores;
  bool renormalize;
};

struct GateArguments {
  GateRule rule;
  const void* logits; // [T, E]
  GateElement element;
  int64_t token_stride;
  int64_t expert_stride;
  int64_t num_experts;
  const float* bias;      // [E], or null
  const uint8_t* token_mask; // [T] of bool, whose bytes need not be 0 or 1; or null
  int64_t token_mask_stride;
  float* weights; // [T, K]
  void* index;    // [T, K]
  bool narrow_index; // int32, otherwise int64
  float* chosen;     // [T, K] logits of the chosen, or null
  double* logsumexp; // [T], or null
};

struct GateGradientArguments {
  GateScore weight_score;
  bool renormalize;
  double eps;
  double scale;
  int64_t top_k;
  int64_t num_experts;
  const float* grad_weights; // [T, K], or null
  int64_t grad_weights_strides[2];
  const float* grad_chosen; // [T, K], or null
  int64_t grad_chosen_strides[2];
  const double* grad_logsumexp; // [T], or null
  int64_t grad_logsumexp_stride;
  const void* index; // [T, K], different experts; -1 in an empty slot
  bool narrow_index;
  const float* chosen;     // [T, K]
  const double* logsumexp; // [T], or null
  const void* logits;      // [T, E], or null: no gradient goes beyond the chosen
  int64_t token_stride;
  int64_t expert_stride;
  GateElement element; // of the logits and of their gradient
  void* grad_logits;   // [T, E]
};

} // namespace moegate

// Bytes of scratch memory that a thread needs, aligned to 64.
MOEGATE_DECLARE_KERNEL(int64_t, topk_gate_scratch, (const GateArguments& arguments));
// `counts` [E] are added to, or null.
MOEGATE_DECLARE_KERNEL(
    void, topk_gate_rows,
    (const GateArguments& arguments, void* scratch, int64_t* counts, int64_t begin, int64_t end));
MOEGATE_DECLARE_KERNEL(int64_t, topk_gate_gradient_scratch, (const GateGradientArguments& arguments));
// False when an index is no expert.
MOEGATE_DECLARE_KERNEL(
    bool, topk_gate_gradient_rows,
    (const GateGradientArguments& arguments, void* scratch, int64_t begin, int64_t end));
