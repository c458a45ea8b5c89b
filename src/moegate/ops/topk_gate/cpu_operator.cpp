#include "topk_gate/cpu_operator.h"

#include <cstring>
#include <mutex>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cpu/new_tensor.h"
#include "cpu/scratch.h"

namespace moegate {

GateMode gate_mode(int64_t mode) {
  const int64_t score = mode & 15, weight_score = (mode >> 4) & 15;
  check(
      mode >= 0 && mode < (1 << 14) && score <= 5 && weight_score <= 5,
      "mode=", mode, " does not describe a gate: build it with moegate.ops.topk_gate.");
  const auto has = [&](int64_t flag) { return (mode >> (8 + flag) & 1) != 0; };
  return {static_cast<GateScore>(score), static_cast<GateScore>(weight_score), has(0), has(1), has(2), has(3), has(4),
          has(5)};
}

GateElement gate_element(const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return GateElement::float32;
    case ScalarType::BFloat16:
      return GateElement::bfloat16;
    case ScalarType::Half:
      return GateElement::float16;
    default:
      fail(name, " must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype), ".");
  }
}

void check_on_cpu(const char* name, const Tensor& tensor) {
  check(tensor.is_cpu(), name, " must be on the CPU, like the logits.");
}

void check_factors(double eps, double scale) {
  check(eps >= 0.0, "eps must not be negative or NaN, got ", eps, ".");
  check(scale == scale, "scale must be a number, got ", scale, ".");
}

namespace {

void check_rule(const GateRule& rule, int64_t num_experts) {
  check(
      num_experts >= 1 && num_experts < (int64_t{1} << 31) - 64, "logits must have from 1 to 2^31 - 65 experts, got ",
      num_experts, ".");
  check(
      rule.top_k >= 1 && rule.top_k <= num_experts, "top_k=", rule.top_k, " is out of range: choose from 1 to ",
      num_experts, ".");
  check(
      rule.num_groups >= 1 && num_experts % rule.num_groups == 0, num_experts,
      " experts do not divide into num_groups=", rule.num_groups, " equal groups.");
  check(
      rule.groups_kept >= 1 && rule.groups_kept <= rule.num_groups, "groups_kept=", rule.groups_kept,
      " is out of range: choose from 1 to ", rule.num_groups, ".");
  const int64_t group_size = num_experts / rule.num_groups;
  check(
      rule.top_k <= rule.groups_kept * group_size, "top_k=", rule.top_k, " exceeds the ",
      rule.groups_kept * group_size, " experts of ", rule.groups_kept, " groups of ", group_size, ".");
  check(!rule.groups_by_top2_sum || group_size >= 2, "A sum of two needs groups of at least 2 experts.");
}

void take_logits(GateArguments& arguments, const Tensor& logits) {
  check_dim("logits", logits, 2);
  check_on_cpu("logits", logits);
  arguments.element = gate_element("logits", logits.scalar_type());
  arguments.logits = logits.const_data_ptr();
  arguments.num_experts = logits.size(1);
  arguments.token_stride = logits.stride(0);
  // The stride of a dimension of size 1 says nothing.
  arguments.expert_stride = logits.size(1) == 1 ? 1 : logits.stride(1);
}

// Returns the tensor that the pointer to the bias belongs to.
std::optional<Tensor> take_bias(GateArguments& arguments, const std::optional<Tensor>& bias) {
  if (!bias.has_value()) return std::nullopt;
  check_dim("bias", *bias, 1);
  check_on_cpu("bias", *bias);
  check_dtype("bias", *bias, ScalarType::Float);
  check(
      bias->size(0) == arguments.num_experts, "bias must hold one value for each of ", arguments.num_experts,
      " experts, got ", bias->size(0), ".");
  Tensor contiguous = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  arguments.bias = static_cast<const float*>(contiguous.const_data_ptr());
  return contiguous;
}

void take_token_mask(GateArguments& arguments, const std::optional<Tensor>& token_mask, int64_t num_tokens) {
  if (!token_mask.has_value()) return;
  check_dim("token_mask", *token_mask, 1);
  check_on_cpu("token_mask", *token_mask);
  check_dtype("token_mask", *token_mask, ScalarType::Bool);
  check(
      token_mask->size(0) == num_tokens, "token_mask must hold one value for each of ", num_tokens, " tokens, got ",
      token_mask->size(0), ".");
  arguments.token_mask = static_cast<const uint8_t*>(token_mask->const_data_ptr());
  arguments.token_mask_stride = token_mask->stride(0);
}

double nanoseconds_of_a_token(const GateArguments& arguments) {
  const bool scores_all = arguments.bias != nullptr || arguments.rule.ranks_scores;
  return 20.0 + 5.0 * static_cast<double>(arguments.rule.top_k) +
      (scores_all ? 0.6 : 0.3) * static_cast<double>(arguments.num_experts);
}

// Each thread counts for itself; sums of integers do not show their order.
void run(const GateArguments& arguments, int64_t num_tokens, int64_t* counts) {
  const auto rows = MOEGATE_SELECT_KERNEL(topk_gate_rows);
  const int64_t rows_scratch = (MOEGATE_SELECT_KERNEL(topk_gate_scratch)(arguments) + 63) / 64 * 64;
  const int64_t counts_size = counts == nullptr ? 0 : arguments.num_experts * static_cast<int64_t>(sizeof(int64_t));
  std::mutex adding;
  parallel_with_scratch(
      num_tokens, nanoseconds_of_a_token(arguments), rows_scratch + counts_size,
      [&](void* scratch, int64_t begin, int64_t end) {
        if (counts == nullptr) return rows(arguments, scratch, nullptr, begin, end);
        int64_t* own = reinterpret_cast<int64_t*>(static_cast<char*>(scratch) + rows_scratch);
        std::memset(own, 0, static_cast<size_t>(counts_size));
        rows(arguments, scratch, own, begin, end);
        const std::lock_guard<std::mutex> guard(adding);
        for (int64_t expert = 0; expert < arguments.num_experts; ++expert) counts[expert] += own[expert];
      });
}

using Statistics = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

GateRule gate_rule(
    const GateMode& mode, int64_t top_k, int64_t num_groups, int64_t groups_kept, double eps, double scale) {
  check_factors(eps, scale);
  return {top_k, num_groups, groups_kept, eps, static_cast<float>(scale), mode.score, mode.weight_score,
          mode.groups_by_top2_sum, mode.ranks_scores, mode.renormalize};
}

std::tuple<Tensor, Tensor> topk_gate(
    const Tensor& logits, const std::optional<Tensor>& bias, const std::optional<Tensor>& token_mask, int64_t top_k,
    int64_t num_groups, int64_t groups_kept, double eps, double scale, int64_t mode_bits) {
  const GateMode mode = gate_mode(mode_bits);
  GateArguments arguments{};
  arguments.rule = gate_rule(mode, top_k, num_groups, groups_kept, eps, scale);
  take_logits(arguments, logits);
  check_rule(arguments.rule, arguments.num_experts);
  const int64_t num_tokens = logits.size(0);
  const std::optional<Tensor> kept_bias = take_bias(arguments, bias);
  take_token_mask(arguments, token_mask, num_tokens);
  Tensor weights = new_tensor({num_tokens, top_k}, ScalarType::Float);
  Tensor index = new_tensor({num_tokens, top_k}, mode.narrow_index ? ScalarType::Int : ScalarType::Long);
  arguments.weights = static_cast<float*>(weights.mutable_data_ptr());
  arguments.index = index.mutable_data_ptr();
  arguments.narrow_index = mode.narrow_index;
  run(arguments, num_tokens, nullptr);
  return {weights, index};
}

Statistics topk_gate_statistics(
    const Tensor& logits, const std::optional<Tensor>& bias, const std::optional<Tensor>& token_mask, int64_t top_k,
    int64_t num_groups, int64_t groups_kept, double eps, double scale, int64_t mode_bits) {
  const GateMode mode = gate_mode(mode_bits);
  GateArguments arguments{};
  arguments.rule = gate_rule(mode, top_k, num_groups, groups_kept, eps, scale);
  take_logits(arguments, logits);
  check_rule(arguments.rule, arguments.num_experts);
  const int64_t num_tokens = logits.size(0);
  const std::optional<Tensor> kept_bias = take_bias(arguments, bias);
  take_token_mask(arguments, token_mask, num_tokens);
  Tensor weights = new_tensor({num_tokens, top_k}, ScalarType::Float);
  Tensor index = new_tensor({num_tokens, top_k}, mode.narrow_index ? ScalarType::Int : ScalarType::Long);
  Tensor counts = new_tensor({mode.with_counts ? arguments.num_experts : 0}, ScalarType::Long);
  Tensor logsumexp = new_tensor({mode.with_logsumexp ? num_tokens : 0}, ScalarType::Double);
  Tensor chosen = new_tensor({num_tokens, top_k}, ScalarType::Float);
  arguments.weights = static_cast<float*>(weights.mutable_data_ptr());
  arguments.index = index.mutable_data_ptr();
  arguments.narrow_index = mode.narrow_index;
  arguments.chosen = static_cast<float*>(chosen.mutable_data_ptr());
  if (mode.with_logsumexp) arguments.logsumexp = static_cast<double*>(logsumexp.mutable_data_ptr());
  int64_t* counted = mode.with_counts ? static_cast<int64_t*>(counts.mutable_data_ptr()) : nullptr;
  if (counted != nullptr) std::memset(counted, 0, static_cast<size_t>(arguments.num_experts) * sizeof(int64_t));
  run(arguments, num_tokens, counted);
  return {weights, index, counts, logsumexp, chosen};
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("topk_gate", TORCH_BOX(&moegate::topk_gate));
  m.impl("topk_gate_statistics", TORCH_BOX(&moegate::topk_gate_statistics));
}
