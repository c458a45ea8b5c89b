// What the operators of topk_gate have in common: how a rule and a row of logits are passed and checked.
#pragma once

#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/check.h"
#include "topk_gate/cpu_kernel.h"

namespace moegate {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The bits of `mode`, as moegate.ops.topk_gate.options writes them.
struct GateMode {
  GateScore score;
  GateScore weight_score;
  bool groups_by_top2_sum, ranks_scores, renormalize, narrow_index, with_counts, with_logsumexp;
};

GateMode gate_mode(int64_t mode);
GateElement gate_element(const char* name, ScalarType dtype);
void check_on_cpu(const char* name, const Tensor& tensor);
void check_factors(double eps, double scale);

} // namespace moegate
