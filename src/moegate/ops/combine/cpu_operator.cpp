// combine, the gradient of permute and that of the weights on the CPU: all of them read the rows of each token.
#include "combine/cpu_operator.h"

#include "combine/cpu_kernel.h"
#include "cpu/routed_rows.h"

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>

namespace moegate {
namespace {

CombineArguments arguments_of(const Matrix& rows, const Places& places) {
  CombineArguments arguments{};
  arguments.element = rows.element;
  arguments.hidden_size = rows.width;
  arguments.rows = rows.data;
  arguments.row_stride = rows.stride;
  arguments.num_rows = places.num_rows;
  arguments.inverse = places.rows();
  arguments.top_k = places.top_k;
  return arguments;
}

void run(const CombineArguments& arguments, const Places& places) {
  const auto kernel = MOEGATE_SELECT_KERNEL(combine_rows);
  const int64_t bytes = arguments.hidden_size * 4 * (places.top_k + 1);
  const bool sound = all_sound(
      places.num_tokens, bytes, [&](int64_t begin, int64_t end) { return kernel(arguments, begin, end); });
  if (!sound) {
    fail_out_of_range("inverse", arguments.inverse, places.num_tokens * places.top_k, places.num_rows);
  }
}

} // namespace

Tensor combine(Tensor rows_RD, Tensor slot_R, Tensor inverse_TK, std::optional<Tensor> weights_TK) {
  const Matrix rows("rows", rows_RD);
  const Places places(slot_R, inverse_TK);
  places.check_rows("rows", rows);
  if (weights_TK) weights_TK = checked_weights(*weights_TK, places, rows.element);
  const Tensor out = new_tensor({places.num_tokens, rows.width}, rows.tensor.scalar_type());
  CombineArguments arguments = arguments_of(rows, places);
  arguments.weights = weights_TK ? weights_TK->const_data_ptr() : nullptr;
  arguments.out = out.mutable_data_ptr();
  run(arguments, places);
  return out;
}

namespace {

Tensor row_dots(Tensor rows_RD, Tensor hidden_TD, Tensor slot_R, Tensor inverse_TK) {
  const Matrix rows("rows", rows_RD);
  const Matrix hidden("hidden", hidden_TD);
  const Places places(slot_R, inverse_TK);
  places.check_rows("rows", rows);
  places.check_tokens("hidden", hidden);
  check_alike("rows", rows, "hidden", hidden);
  const Tensor dots = new_tensor({places.num_tokens, places.top_k}, weight_type(rows.element));
  CombineArguments arguments = arguments_of(rows, places);
  arguments.partner = hidden.data;
  arguments.partner_stride = hidden.stride;
  arguments.dots = dots.mutable_data_ptr();
  run(arguments, places);
  return dots;
}

std::tuple<Tensor, Tensor> permute_backward(
    Tensor grad_RD, Tensor hidden_TD, Tensor slot_R, Tensor inverse_TK, Tensor weights_TK) {
  const Matrix grad("grad", grad_RD);
  const Matrix hidden("hidden", hidden_TD);
  const Places places(slot_R, inverse_TK);
  places.check_rows("grad", grad);
  places.check_tokens("hidden", hidden);
  check_alike("grad", grad, "hidden", hidden);
  const Tensor weights = checked_weights(weights_TK, places, grad.element);
  const Tensor grad_hidden = new_tensor({places.num_tokens, grad.width}, grad.tensor.scalar_type());
  const Tensor grad_weights = new_tensor({places.num_tokens, places.top_k}, weights.scalar_type());
  CombineArguments arguments = arguments_of(grad, places);
  arguments.weights = weights.const_data_ptr();
  arguments.out = grad_hidden.mutable_data_ptr();
  arguments.partner = hidden.data;
  arguments.partner_stride = hidden.stride;
  arguments.dots = grad_weights.mutable_data_ptr();
  run(arguments, places);
  return {grad_hidden, grad_weights};
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("combine", TORCH_BOX(&moegate::combine));
  m.impl("row_dots", TORCH_BOX(&moegate::row_dots));
  m.impl("permute_backward", TORCH_BOX(&moegate::permute_backward));
}
