// permute and the gradient of combine on the CPU: both write rows from tokens.
#include "permute/cpu_operator.h"

#include "cpu/routed_rows.h"
#include "permute/cpu_kernel.h"

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>

namespace moegate {
namespace {

PermuteArguments arguments_of(const Matrix& hidden, const Places& places, const Tensor* weights, const Tensor& rows) {
  PermuteArguments arguments{};
  arguments.element = hidden.element;
  arguments.hidden_size = hidden.width;
  arguments.hidden = hidden.data;
  arguments.hidden_stride = hidden.stride;
  arguments.slot = places.slots();
  arguments.num_slots = places.num_tokens * places.top_k;
  arguments.top_k = places.top_k;
  arguments.weights = weights == nullptr ? nullptr : weights->const_data_ptr();
  arguments.rows = rows.mutable_data_ptr();
  return arguments;
}

void run(const PermuteArguments& arguments, const Places& places) {
  const auto kernel = MOEGATE_SELECT_KERNEL(permute_rows);
  const int64_t bytes = arguments.hidden_size * (arguments.element == Element::float64 ? 16 : 8);
  const bool sound = all_sound(
      places.num_rows, bytes, [&](int64_t begin, int64_t end) { return kernel(arguments, begin, end); });
  if (!sound) fail_out_of_range("slot", arguments.slot, places.num_rows, arguments.num_slots);
}

} // namespace

Tensor permute(Tensor hidden_TD, Tensor slot_R, Tensor inverse_TK, std::optional<Tensor> weights_TK) {
  const Matrix hidden("hidden", hidden_TD);
  const Places places(slot_R, inverse_TK);
  places.check_tokens("hidden", hidden);
  if (weights_TK) weights_TK = checked_weights(*weights_TK, places, hidden.element);
  const Tensor rows = new_tensor({places.num_rows, hidden.width}, hidden.tensor.scalar_type());
  run(arguments_of(hidden, places, weights_TK ? &*weights_TK : nullptr, rows), places);
  return rows;
}

namespace {

std::tuple<Tensor, Tensor> combine_backward(
    Tensor grad_TD, Tensor rows_RD, Tensor slot_R, Tensor inverse_TK, Tensor weights_TK) {
  const Matrix grad("grad", grad_TD);
  const Matrix rows("rows", rows_RD);
  const Places places(slot_R, inverse_TK);
  places.check_tokens("grad", grad);
  places.check_rows("rows", rows);
  check_alike("grad", grad, "rows", rows);
  const Tensor weights = checked_weights(weights_TK, places, grad.element);
  const Tensor grad_rows = new_tensor({places.num_rows, grad.width}, grad.tensor.scalar_type());
  Tensor grad_weights = new_tensor({places.num_tokens, places.top_k}, weights.scalar_type());
  torch::stable::zero_(grad_weights); // empty slots have no row
  PermuteArguments arguments = arguments_of(grad, places, &weights, grad_rows);
  arguments.partner = rows.data;
  arguments.partner_stride = rows.stride;
  arguments.dots = grad_weights.mutable_data_ptr();
  run(arguments, places);
  return {grad_rows, grad_weights};
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("permute", TORCH_BOX(&moegate::permute));
  m.impl("combine_backward", TORCH_BOX(&moegate::combine_backward));
}
