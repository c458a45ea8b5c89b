// moegate::topk_gate_ablation: the gate with one of its optimisations switched off, for the study of what each brings.
#include "topk_gate/cpu_kernel_ablation.h"

#include <atomic>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cpu/new_tensor.h"
#include "cpu/scratch.h"
#include "topk_gate/cpu_operator.h"

namespace moegate {
namespace {

constexpr double kNanosecondsOfAnExpert = 0.6;

Optimisation optimisation_numbered(int64_t number) {
  check(number >= 0 && number <= 4, "No optimisation has the number ", number, ": choose 0 (none), 1 (blocking), ",
        "2 (tree reduction), 3 (branch-free) or 4 (structure of arrays).");
  return static_cast<Optimisation>(number);
}

void check_inputs(const Tensor& logits, const Tensor& bias, int64_t top_k) {
  check_dim("logits", logits, 2);
  check_on_cpu("logits", logits);
  check_dtype("logits", logits, ScalarType::Float);
  check_dim("bias", bias, 1);
  check_on_cpu("bias", bias);
  check_dtype("bias", bias, ScalarType::Float);
  const int64_t num_experts = logits.size(1);
  check(num_experts >= 1 && num_experts <= 65536, "logits must have from 1 to 65,536 experts, got ", num_experts, ".");
  check(bias.size(0) == num_experts, "bias must hold one value for each of ", num_experts, " experts, got ",
        bias.size(0), ".");
  check(top_k >= 1 && top_k <= num_experts, "top_k=", top_k, " is out of range: choose from 1 to ", num_experts, ".");
}

void run(const AblationArguments& arguments, int64_t num_tokens) {
  const int64_t grain = items_per_thread(kNanosecondsOfAnExpert * static_cast<double>(arguments.num_experts));
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, num_tokens, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch = scratch_memory(MOEGATE_SELECT_KERNEL(topk_gate_ablation_scratch)(arguments, end - begin));
    if (scratch) MOEGATE_SELECT_KERNEL(topk_gate_ablation_rows)(arguments, scratch.get(), begin, end);
    else out_of_memory = true; // an exception must not leave a thread
  });
  check(!out_of_memory, "There is not enough memory for the intermediate results of ", num_tokens, " tokens.");
}

std::tuple<Tensor, Tensor> topk_gate_ablation(
    const Tensor& logits, const Tensor& bias, int64_t top_k, double eps, int64_t switched_off, bool prefetch) {
  check_inputs(logits, bias, top_k);
  check_factors(eps, 1.0);
  const Tensor rows = torch::stable::contiguous(logits), added = torch::stable::contiguous(bias);
  const int64_t num_tokens = logits.size(0);
  Tensor weights = new_tensor({num_tokens, top_k}, ScalarType::Float);
  Tensor index = new_tensor({num_tokens, top_k}, ScalarType::Long);
  AblationArguments arguments{};
  arguments.rule = {top_k, 1, 1, eps, 1.0f, GateScore::sigmoid, GateScore::sigmoid, false, false, true};
  arguments.logits = static_cast<const float*>(rows.const_data_ptr());
  arguments.num_experts = logits.size(1);
  arguments.bias = static_cast<const float*>(added.const_data_ptr());
  arguments.switched_off = optimisation_numbered(switched_off);
  arguments.prefetches = prefetch;
  arguments.weights = static_cast<float*>(weights.mutable_data_ptr());
  arguments.index = static_cast<int64_t*>(index.mutable_data_ptr());
  run(arguments, num_tokens);
  return {weights, index};
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("topk_gate_ablation", TORCH_BOX(&moegate::topk_gate_ablation));
}
