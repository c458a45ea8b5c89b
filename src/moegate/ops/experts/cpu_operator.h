// The forward of the experts as a function, for operators that go on from it.
#pragma once

#include <cstdint>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

namespace moegate {

std::tuple<torch::stable::Tensor, torch::stable::Tensor> experts(
    torch::stable::Tensor rows, torch::stable::Tensor up, torch::stable::Tensor down, torch::stable::Tensor offsets, int64_t activation, bool keep);

} // namespace moegate
