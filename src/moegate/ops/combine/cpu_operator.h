// combine as a function, for operators that go on from it.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace moegate {

torch::stable::Tensor combine(
    torch::stable::Tensor rows_RD, torch::stable::Tensor slot_R, torch::stable::Tensor inverse_TK, std::optional<torch::stable::Tensor> weights_TK);

} // namespace moegate
