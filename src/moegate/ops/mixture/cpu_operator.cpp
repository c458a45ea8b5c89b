// mixture on the CPU: the operators of the layer's second half, one after the other without Python between them.
#include "combine/cpu_operator.h"
#include "cpu/check.h"
#include "dispatch_plan/cpu_operator.h"
#include "experts/cpu_operator.h"
#include "permute/cpu_operator.h"

#include <optional>

#include <torch/csrc/stable/library.h>

namespace moegate {
namespace {

using torch::stable::Tensor;

Tensor mixture(
    Tensor hidden, Tensor index, Tensor weights, Tensor up, Tensor down, int64_t activation, bool weight_input) {
  check_dim("up", up, 3);
  const auto [counts, offsets, slot, inverse] = dispatch_plan(index, up.size(0), 1, -1, false, true);
  const std::optional<Tensor> factors(weights), none;
  const Tensor rows = permute(hidden, slot, inverse, weight_input ? factors : none);
  const Tensor out = std::get<0>(experts(rows, up, down, offsets, activation, false));
  return combine(out, slot, inverse, weight_input ? none : factors);
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) { m.impl("mixture", TORCH_BOX(&moegate::mixture)); }
