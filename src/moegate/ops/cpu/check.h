// Checks of what operators are given. An error is a sentence, without the place in the source that found it.
#pragma once

#include <sstream>
#include <stdexcept>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace moegate {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// check(k <= n, "k=", k, " is out of range: the rows have ", n, " elements.");
template <class... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]] fail(parts...);
}

inline void check_dim(const char* name, const torch::stable::Tensor& tensor, int64_t dim) {
  check(tensor.dim() == dim, name, " must have ", dim, " dimensions, got ", tensor.dim(), ".");
}

inline void check_dtype(const char* name, const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype) {
  check(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype), ", got ",
        torch::headeronly::toString(tensor.scalar_type()), ".");
}

} // namespace moegate
