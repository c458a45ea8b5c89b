#include "portable/cpu_kernel.h"

#include <string>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/check.h"

namespace moegate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

PortableElement portable_element(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return PortableElement::float32;
    case ScalarType::BFloat16:
      return PortableElement::bfloat16;
    case ScalarType::Half:
      return PortableElement::float16;
    default:
      fail("logits must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype), ".");
  }
}

PortableScore portable_score(const std::string& name) {
  if (name == "softmax") return PortableScore::softmax;
  if (name == "sigmoid") return PortableScore::sigmoid;
  if (name == "sqrt_softplus") return PortableScore::sqrt_softplus;
  fail("score must be softmax, sigmoid or sqrt_softplus; got '", name, "'.");
}

Tensor portable_scores(const Tensor& logits, std::string score) {
  check(logits.dim() >= 1, "logits must have the shape [..., num_experts], got no dimension.");
  check(logits.is_cpu(), "logits must be on the CPU.");
  PortableArguments arguments{};
  arguments.element = portable_element(logits.scalar_type());
  arguments.score = portable_score(score);
  const Tensor contiguous = torch::stable::contiguous(logits);
  Tensor scores = torch::stable::new_empty(contiguous, contiguous.sizes(), ScalarType::Float);
  arguments.logits = contiguous.const_data_ptr();
  arguments.scores = static_cast<float*>(scores.mutable_data_ptr());
  arguments.row_size = logits.size(logits.dim() - 1);
  if (logits.numel() == 0) return scores;
  const auto rows = MOEGATE_SELECT_KERNEL(portable_scores_rows);
  const int64_t grain = 1 + (int64_t{1} << 16) / arguments.row_size;
  torch::stable::parallel_for(
      0, logits.numel() / arguments.row_size, grain,
      [&](int64_t begin, int64_t end) { rows(arguments, begin, end); });
  return scores;
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) { m.impl("portable_scores", TORCH_BOX(&moegate::portable_scores)); }
