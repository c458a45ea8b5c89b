// moegate::topk_by_algorithm: the four classic algorithms on the same keys, for the study of which is fast where.
#include "cpu/check.h"
#include "ordered_topk/cpu_kernel_algorithms.h"

#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace moegate {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsAThread = 32768; // fewer are not worth waking a thread for

Algorithm algorithm_numbered(int64_t number) {
  check(number >= 0 && number <= 3, "No algorithm has the number ", number, ": choose 0 (full sort), 1 (heap), ",
        "2 (quickselect) or 3 (blocked).");
  return static_cast<Algorithm>(number);
}

void check_sizes(int64_t num_elements, int64_t k) {
  check(k >= 0 && k <= num_elements, "k=", k, " is out of range: the rows have ", num_elements, " elements.");
  check(num_elements <= UINT32_MAX, "Rows of ", num_elements, " elements are too long: an index must fit 32 bits.");
}

Tensor topk_by_algorithm(Tensor values, int64_t k, int64_t algorithm) {
  check_dim("values", values, 2);
  check_dtype("values", values, torch::headeronly::ScalarType::Float);
  const int64_t rows = values.size(0), num_elements = values.size(1);
  check_sizes(num_elements, k);
  const Algorithm chosen = algorithm_numbered(algorithm);
  Tensor index = torch::stable::new_empty(values, {rows, k}, torch::headeronly::ScalarType::Long);
  if (rows == 0 || k == 0) return index;
  const Tensor contiguous = torch::stable::contiguous(values);
  const StudyArguments arguments{
      static_cast<const float*>(contiguous.const_data_ptr()), num_elements, k, chosen,
      static_cast<int64_t*>(index.mutable_data_ptr())};
  const int64_t grain = kElementsAThread / num_elements + 1;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> scratch(static_cast<size_t>(scratch_keys(chosen, num_elements, k)));
    MOEGATE_SELECT_KERNEL(topk_by_algorithm)(arguments, scratch.data(), begin, end);
  });
  return index;
}

// Bytes that one thread of topk_by_algorithm allocates beside input and output.
int64_t scratch_bytes(int64_t num_elements, int64_t k, int64_t algorithm) {
  check_sizes(num_elements, k);
  return scratch_keys(algorithm_numbered(algorithm), num_elements, k) * static_cast<int64_t>(sizeof(uint64_t));
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_FRAGMENT(moegate, m) {
  m.def("topk_by_algorithm_scratch(int num_elements, int k, int algorithm) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("topk_by_algorithm", TORCH_BOX(&moegate::topk_by_algorithm));
}

STABLE_TORCH_LIBRARY_IMPL(moegate, CompositeExplicitAutograd, m) {
  m.impl("topk_by_algorithm_scratch", TORCH_BOX(&moegate::scratch_bytes));
}
