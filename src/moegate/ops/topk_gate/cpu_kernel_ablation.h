// The gate with one of its optimisations switched off, as a study of what each of them brings.
#pragma once

#include "topk_gate/cpu_kernel.h"

namespace moegate {

// Numbered like OPTIMISATIONS in Python.
enum class Optimisation : int64_t { none, blocking, tree_reduction, branch_free, structure_of_arrays };

struct AblationArguments {
  GateRule rule;       // sigmoid, renormalised
  const float* logits; // [T, E], contiguous
  int64_t num_experts;
  const float* bias; // [E]
  Optimisation switched_off;
  bool prefetches; // asks for the rows ahead
  float* weights;  // [T, K]
  int64_t* index;  // [T, K]
};

} // namespace moegate

// Bytes of scratch memory for a thread with so many rows, aligned to 64.
MOEGATE_DECLARE_KERNEL(
    int64_t, topk_gate_ablation_scratch, (const AblationArguments& arguments, int64_t num_rows));
MOEGATE_DECLARE_KERNEL(
    void, topk_gate_ablation_rows,
    (const AblationArguments& arguments, void* scratch, int64_t begin, int64_t end));
