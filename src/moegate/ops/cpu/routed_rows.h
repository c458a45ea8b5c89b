// What the operators between tokens and rows are given: matrices of elements, weights, and the two ways between slots
// and rows. Checked here; the values of slots and rows are checked by the kernels as they go.
#pragma once

#include "cpu/check.h"
#include "cpu/element.h"
#include "cpu/new_tensor.h"

#include <algorithm>
#include <atomic>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace moegate {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Element::float32;
    case ScalarType::Double: return Element::float64;
    case ScalarType::BFloat16: return Element::bfloat16;
    case ScalarType::Half: return Element::float16;
    default:
      fail(
          name, " must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(tensor.scalar_type()), ".");
  }
}

inline Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Rows of elements that follow each other; the rows themselves may lie anywhere.
struct Matrix {
  Matrix(const char* name, const Tensor& given)
      : tensor((check_dim(name, given, 2), given.size(1) > 1 && given.stride(1) != 1)
                   ? torch::stable::contiguous(given)
                   : given),
        element(element_of(name, tensor)),
        height(tensor.size(0)),
        width(tensor.size(1)),
        stride(tensor.stride(0)),
        data(tensor.const_data_ptr()) {}

  Tensor tensor;
  Element element;
  int64_t height;
  int64_t width;
  int64_t stride;
  const void* data;
};

inline void check_alike(const char* left_name, const Matrix& left, const char* right_name, const Matrix& right) {
  check(
      left.tensor.scalar_type() == right.tensor.scalar_type() && left.width == right.width, left_name, " [",
      left.height, ", ", left.width, "] and ", right_name, " [", right.height, ", ", right.width,
      "] must have the same type and the same width.");
}

// The row of each slot and the slot of each row; -1 where there is none.
struct Places {
  Places(const Tensor& slot_R, const Tensor& inverse_TK)
      : slot((check_dim("slot", slot_R, 1), check_dtype("slot", slot_R, ScalarType::Long), made_contiguous(slot_R))),
        inverse(
            (check_dim("inverse", inverse_TK, 2), check_dtype("inverse", inverse_TK, ScalarType::Long),
             made_contiguous(inverse_TK))),
        num_rows(slot.size(0)),
        num_tokens(inverse.size(0)),
        top_k(inverse.size(1)) {}

  const int64_t* slots() const { return static_cast<const int64_t*>(slot.const_data_ptr()); }
  const int64_t* rows() const { return static_cast<const int64_t*>(inverse.const_data_ptr()); }

  void check_tokens(const char* name, const Matrix& matrix) const {
    check(
        matrix.height == num_tokens, name, " [", matrix.height, ", ", matrix.width, "] must have one row for each of ",
        num_tokens, " tokens.");
  }
  void check_rows(const char* name, const Matrix& matrix) const {
    check(
        matrix.height == num_rows, name, " [", matrix.height, ", ", matrix.width, "] must have one row for each of ",
        num_rows, " slots.");
  }

  Tensor slot;
  Tensor inverse;
  int64_t num_rows;
  int64_t num_tokens;
  int64_t top_k;
};

inline ScalarType weight_type(Element element) {
  return element == Element::float64 ? ScalarType::Double : ScalarType::Float;
}

inline Tensor checked_weights(const Tensor& weights, const Places& places, Element element) {
  check_dim("weights", weights, 2);
  check_dtype("weights", weights, weight_type(element));
  check(
      weights.size(0) == places.num_tokens && weights.size(1) == places.top_k, "weights [", weights.size(0), ", ",
      weights.size(1), "] must be [", places.num_tokens, ", ", places.top_k, "], as inverse is.");
  return made_contiguous(weights);
}

// Runs kernel(begin, end) over all items in parallel, in tasks of at least 128 KiB; false when one of them was false.
template <class Kernel>
bool all_sound(int64_t items, int64_t bytes_per_item, const Kernel& kernel) {
  constexpr int64_t kTaskBytes = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, bytes_per_item));
  if (items <= grain) return kernel(int64_t{0}, items);
  std::atomic<bool> sound{true};
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    if (!kernel(begin, end)) sound.store(false, std::memory_order_relaxed);
  });
  return sound.load();
}

// The sentence for the first value that is out of range.
[[noreturn]] inline void fail_out_of_range(const char* name, const int64_t* values, int64_t count, int64_t limit) {
  int64_t at = 0;
  while (at + 1 < count && values[at] >= -1 && values[at] < limit) ++at;
  fail(name, " holds ", values[at], " at place ", at, ": expected a number below ", limit, ", or -1 for none.");
}

} // namespace moegate
