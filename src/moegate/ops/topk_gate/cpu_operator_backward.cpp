#include "topk_gate/cpu_operator.h"

#include <atomic>

#include <torch/csrc/stable/library.h>

#include "cpu/new_tensor.h"
#include "cpu/scratch.h"

namespace moegate {
namespace {

struct TokensBySlots {
  int64_t num_tokens;
  int64_t top_k;
};

void check_shape(const char* name, const Tensor& tensor, TokensBySlots shape) {
  check_dim(name, tensor, 2);
  check_on_cpu(name, tensor);
  check(
      tensor.size(0) == shape.num_tokens && tensor.size(1) == shape.top_k, name, " must have the shape of the index, [",
      shape.num_tokens, ", ", shape.top_k, "], got [", tensor.size(0), ", ", tensor.size(1), "].");
}

void check_one_a_token(const char* name, const Tensor& tensor, int64_t num_tokens) {
  check_dim(name, tensor, 1);
  check_on_cpu(name, tensor);
  check_dtype(name, tensor, ScalarType::Double);
  check(tensor.size(0) == num_tokens, name, " must hold one value for each of ", num_tokens, " tokens, got ",
        tensor.size(0), ".");
}

// A gradient of [T, K] float32 in any strides; null where there is none.
const float* take_slot_grads(
    const char* name, const std::optional<Tensor>& grads, TokensBySlots shape, int64_t (&strides)[2]) {
  if (!grads.has_value()) return nullptr;
  check_shape(name, *grads, shape);
  check_dtype(name, *grads, ScalarType::Float);
  strides[0] = grads->stride(0);
  strides[1] = grads->stride(1);
  return static_cast<const float*>(grads->const_data_ptr());
}

void take_dense(
    GateGradientArguments& arguments, const std::optional<Tensor>& grad_logsumexp, const Tensor& logsumexp,
    const std::optional<Tensor>& logits, int64_t num_tokens) {
  const bool weights_need_it = arguments.grad_weights != nullptr && arguments.weight_score == GateScore::softmax;
  if (!grad_logsumexp.has_value() && !weights_need_it) return;
  check(logits.has_value(), "The gradient of a logsumexp needs the logits, got none.");
  check_one_a_token("logsumexp", logsumexp, num_tokens);
  check_dim("logits", *logits, 2);
  check_on_cpu("logits", *logits);
  check(
      logits->size(0) == num_tokens && logits->size(1) == arguments.num_experts, "logits must have the shape [",
      num_tokens, ", ", arguments.num_experts, "], got [", logits->size(0), ", ", logits->size(1), "].");
  check(gate_element("logits", logits->scalar_type()) == arguments.element, "logits must have the dtype of their gradient.");
  arguments.logits = logits->const_data_ptr();
  arguments.token_stride = logits->stride(0);
  arguments.expert_stride = logits->size(1) == 1 ? 1 : logits->stride(1);
  arguments.logsumexp = static_cast<const double*>(logsumexp.const_data_ptr());
  if (grad_logsumexp.has_value()) {
    check_one_a_token("grad_logsumexp", *grad_logsumexp, num_tokens);
    arguments.grad_logsumexp = static_cast<const double*>(grad_logsumexp->const_data_ptr());
    arguments.grad_logsumexp_stride = grad_logsumexp->stride(0);
  }
}

Tensor topk_gate_backward(
    const std::optional<Tensor>& grad_weights, const std::optional<Tensor>& grad_logsumexp,
    const std::optional<Tensor>& grad_chosen, const Tensor& index, const Tensor& chosen, const Tensor& logsumexp,
    const std::optional<Tensor>& logits, int64_t num_experts, ScalarType dtype, double eps, double scale,
    int64_t mode_bits) {
  const GateMode mode = gate_mode(mode_bits);
  check_factors(eps, scale);
  check_dim("index", index, 2);
  check_on_cpu("index", index);
  const TokensBySlots shape{index.size(0), index.size(1)};
  check(
      num_experts >= 1 && num_experts < (int64_t{1} << 31) - 64, "num_experts must be from 1 to 2^31 - 65, got ",
      num_experts, ".");
  const bool narrow_index = index.scalar_type() == ScalarType::Int;
  if (!narrow_index) check_dtype("index", index, ScalarType::Long);
  check_shape("chosen", chosen, shape);
  check_dtype("chosen", chosen, ScalarType::Float);
  const Tensor dense_index = torch::stable::contiguous(index), dense_chosen = torch::stable::contiguous(chosen);
  const Tensor dense_logsumexp = torch::stable::contiguous(logsumexp);
  GateGradientArguments arguments{};
  arguments.weight_score = mode.weight_score;
  arguments.renormalize = mode.renormalize;
  arguments.eps = eps;
  arguments.scale = scale;
  arguments.top_k = shape.top_k;
  arguments.num_experts = num_experts;
  arguments.element = gate_element("the gradient", dtype);
  arguments.index = dense_index.const_data_ptr();
  arguments.narrow_index = narrow_index;
  arguments.chosen = static_cast<const float*>(dense_chosen.const_data_ptr());
  arguments.grad_weights = take_slot_grads("grad_weights", grad_weights, shape, arguments.grad_weights_strides);
  arguments.grad_chosen = take_slot_grads("grad_chosen", grad_chosen, shape, arguments.grad_chosen_strides);
  take_dense(arguments, grad_logsumexp, dense_logsumexp, logits, shape.num_tokens);
  Tensor grad_logits = new_tensor({shape.num_tokens, num_experts}, dtype);
  arguments.grad_logits = grad_logits.mutable_data_ptr();
  std::atomic<bool> valid{true};
  const auto rows = MOEGATE_SELECT_KERNEL(topk_gate_gradient_rows);
  const double nanoseconds = 30.0 + 10.0 * static_cast<double>(shape.top_k) +
      (arguments.logits == nullptr ? 0.1 : 0.4) * static_cast<double>(num_experts);
  parallel_with_scratch(
      shape.num_tokens, nanoseconds, MOEGATE_SELECT_KERNEL(topk_gate_gradient_scratch)(arguments),
      [&](void* scratch, int64_t begin, int64_t end) {
        if (!rows(arguments, scratch, begin, end)) valid = false;
      });
  check(valid, "index holds a number that is neither -1 nor an expert below ", num_experts, ".");
  return grad_logits;
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) { m.impl("topk_gate_backward", TORCH_BOX(&moegate::topk_gate_backward)); }
