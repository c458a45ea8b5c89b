// permute as a function, for operators that go on from it.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace moegate {

torch::stable::Tensor permute(
    torch::stable::Tensor hidden_TD, torch::stable::Tensor slot_R, torch::stable::Tensor inverse_TK, std::optional<torch::stable::Tensor> weights_TK);

} // namespace moegate
