#include "ordered_topk/cpu_kernel.h"

#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/check.h"
#include "cpu/new_tensor.h"
#include "cpu/scratch.h"

namespace moegate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

TopKElement topk_element(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return TopKElement::float32;
    case ScalarType::BFloat16:
      return TopKElement::bfloat16;
    case ScalarType::Half:
      return TopKElement::float16;
    default:
      fail("values must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype), ".");
  }
}

TopKArguments topk_arguments(const char* name, const Tensor& values, TopKElement element, int64_t k) {
  check(values.is_cpu(), name, " must be on the CPU.");
  TopKArguments arguments{};
  arguments.values = values.const_data_ptr();
  arguments.element = element;
  arguments.row_size = values.size(1);
  arguments.row_stride = values.stride(0);
  // The stride of a dimension of size 1 says nothing.
  arguments.element_stride = values.size(1) == 1 ? 1 : values.stride(1);
  arguments.k = k;
  check(
      arguments.row_size < (int64_t{1} << 31) - 64, name, " must have fewer than 2^31 - 64 elements a row, got ",
      arguments.row_size, ".");
  check(k >= 0 && k <= arguments.row_size, "k=", k, " is out of range: the rows have ", arguments.row_size,
        " elements.");
  return arguments;
}

Tensor run(TopKArguments& arguments, int64_t num_rows) {
  Tensor index = new_tensor({num_rows, arguments.k}, ScalarType::Long);
  arguments.index = static_cast<int64_t*>(index.mutable_data_ptr());
  if (arguments.k == 0) return index;
  const auto rows = MOEGATE_SELECT_KERNEL(ordered_topk_rows);
  const double nanoseconds = 20.0 + 3.0 * static_cast<double>(arguments.k) + 0.3 * static_cast<double>(arguments.row_size);
  parallel_with_scratch(
      num_rows, nanoseconds, MOEGATE_SELECT_KERNEL(ordered_topk_scratch)(arguments),
      [&](void* scratch, int64_t begin, int64_t end) { rows(arguments, scratch, begin, end); });
  return index;
}

Tensor ordered_topk(const Tensor& values, int64_t k, const std::optional<Tensor>& excluded) {
  check_dim("values", values, 2);
  TopKArguments arguments = topk_arguments("values", values, topk_element(values.scalar_type()), k);
  if (excluded.has_value()) {
    check_dim("excluded", *excluded, 2);
    check_dtype("excluded", *excluded, ScalarType::Bool);
    check(excluded->is_cpu(), "excluded must be on the CPU, like the values.");
    check(
        excluded->size(0) == values.size(0) && excluded->size(1) == values.size(1),
        "excluded must have the shape of the values, [", values.size(0), ", ", values.size(1), "], got [",
        excluded->size(0), ", ", excluded->size(1), "].");
    arguments.excluded = static_cast<const uint8_t*>(excluded->const_data_ptr());
    arguments.excluded_row_stride = excluded->stride(0);
    arguments.excluded_element_stride = excluded->stride(1);
  }
  return run(arguments, values.size(0));
}

Tensor topk_by_key(const Tensor& key, int64_t k) {
  check_dim("key", key, 2);
  check_dtype("key", key, ScalarType::Int);
  TopKArguments arguments = topk_arguments("key", key, TopKElement::int32_key, k);
  return run(arguments, key.size(0));
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("ordered_topk", TORCH_BOX(&moegate::ordered_topk));
  m.impl("topk_by_key", TORCH_BOX(&moegate::topk_by_key));
}
