// New contiguous tensors on the CPU, without the way through the dispatcher: a third of its time.
#pragma once

#include <initializer_list>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace moegate {

// An uninitialised tensor of up to four dimensions.
inline torch::stable::Tensor new_tensor(std::initializer_list<int64_t> sizes, torch::headeronly::ScalarType dtype) {
  int64_t strides[4];
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.begin()[i];
  }
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides, code, aoti_torch_device_type_cpu(), 0, &handle));
  return torch::stable::Tensor(handle);
}

} // namespace moegate
