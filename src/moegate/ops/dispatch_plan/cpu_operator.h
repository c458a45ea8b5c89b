// dispatch_plan as a function, for operators that go on from it.
#pragma once

#include <cstdint>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

namespace moegate {

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> dispatch_plan(
    torch::stable::Tensor index, int64_t num_experts, int64_t alignment, int64_t capacity, bool fill, bool trim);

} // namespace moegate
