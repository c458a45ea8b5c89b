// The backward of the experts: checks, tasks, threads.
#include "experts/backward_tasks.h"

#include "cpu/check.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace moegate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Shape {
  int64_t rows, hidden, width, pre_width, experts;
};

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  check_dim(name, tensor, static_cast<int64_t>(expected.size()));
  int64_t dim = 0;
  for (const int64_t size : expected) {
    check(
        tensor.size(dim) == size, name, " has ", tensor.size(dim), " in dimension ", dim, ", but ", size,
        " fits the other arguments.");
    ++dim;
  }
}

Shape checked_shape(
    const Tensor& grad_out, const Tensor& rows, const Tensor& pre, const Tensor& up, const Tensor& down,
    const Tensor& offsets, int64_t activation) {
  check(activation >= 0 && activation <= 5, "activation=", activation, " is unknown: expected 0 to 5.");
  check_dim("rows", rows, 2);
  check_dim("down", down, 3);
  const bool gated = is_gated(static_cast<Activation>(activation));
  const int64_t width = down.size(2);
  const Shape shape{rows.size(0), rows.size(1), width, gated ? 2 * width : width, down.size(0)};
  check_shape("grad_out", grad_out, {shape.rows, shape.hidden});
  check_shape("pre", pre, {shape.rows, shape.pre_width});
  check_shape("up", up, {shape.experts, shape.pre_width, shape.hidden});
  check_shape("down", down, {shape.experts, shape.hidden, width});
  check_shape("offsets", offsets, {shape.experts});
  check_dtype("offsets", offsets, ScalarType::Long);
  for (const Tensor* tensor : {&grad_out, &rows, &pre, &up, &down, &offsets}) {
    check(tensor->is_cpu(), "All tensors must be on the CPU.");
  }
  const ScalarType dtype = rows.scalar_type();
  check(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
      "rows must be Float or BFloat16, got ", torch::headeronly::toString(dtype), ".");
  check_dtype("grad_out", grad_out, dtype);
  check_dtype("pre", pre, dtype);
  check_dtype("up", up, dtype);
  check_dtype("down", down, dtype);
  return shape;
}

void check_output(const char* name, const Tensor& tensor) {
  check(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous tensor on the CPU.");
}

// The gradients of the weights come together, in one dtype: theirs or float32.
bool check_gradients(const Shape& shape, const Tensor& rows, const Tensor& grad_up, const Tensor& grad_down) {
  check_shape("grad_up", grad_up, {shape.experts, shape.pre_width, shape.hidden});
  check_shape("grad_down", grad_down, {shape.experts, shape.hidden, shape.width});
  check_output("grad_up", grad_up);
  check_output("grad_down", grad_down);
  const ScalarType dtype = grad_up.scalar_type();
  check(
      dtype == rows.scalar_type() || dtype == ScalarType::Float,
      "grad_up must have the dtype of the weights or be Float, got ", torch::headeronly::toString(dtype), ".");
  check_dtype("grad_down", grad_down, dtype);
  return dtype == ScalarType::Float;
}

// Where each expert's rows begin, and after the last where they end.
std::vector<int64_t> checked_starts(const Tensor& offsets, int64_t rows) {
  std::vector<int64_t> starts(static_cast<size_t>(offsets.numel()) + 1, 0);
  const int64_t* ends = static_cast<const int64_t*>(offsets.const_data_ptr());
  for (size_t expert = 0; expert + 1 < starts.size(); ++expert) {
    const int64_t end = ends[expert];
    check(
        end >= starts[expert] && end <= rows, "offsets must not decrease and must end within the ", rows,
        " rows, but offsets[", expert, "] is ", end, ".");
    starts[expert + 1] = end;
  }
  return starts;
}

// Asks for pages of 2 MiB under memory that is written from end to end: where the allocator hands out fresh pages, the
// faults of small ones take longer than the work. Where the system offers none, nothing changes.
void prefer_huge_pages(const std::optional<Tensor>& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  if (!tensor.has_value()) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor->mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(tensor->numel() * tensor->element_size());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

void zero_from(void* values, int64_t first_byte, int64_t bytes) {
  if (values != nullptr) std::memset(static_cast<char*>(values) + first_byte, 0, static_cast<size_t>(bytes));
}

// Work below which a thread more costs more than it brings.
constexpr int64_t kThreadWork = int64_t{1} << 18;

void run_tasks(
    BackwardArguments& arguments, const Tensor& rows, const Shape& shape, const std::vector<int64_t>& starts) {
  const int64_t bytes = arguments.half ? 2 : 4;
  const int64_t in_use = shape.width == 0 ? 0 : starts.back();
  zero_from(arguments.grad_rows, in_use * shape.hidden * bytes, (shape.rows - in_use) * shape.hidden * bytes);
  if (shape.hidden == 0 || shape.width == 0) return; // the gradients of the weights have no elements
  BusyExperts experts(starts);
  const Tensor inner = torch::stable::new_empty(rows, {experts.rows(), shape.width});
  const Tensor grad_pre = torch::stable::new_empty(rows, {experts.rows(), shape.pre_width});
  prefer_huge_pages(grad_pre);
  arguments.inner = inner.mutable_data_ptr();
  arguments.grad_pre = grad_pre.mutable_data_ptr();
  // Multiplications, and the values of the weights that are read and written.
  const int64_t work = (2 * in_use + 2 * experts.count()) * shape.hidden * (shape.width + shape.pre_width);
  const int64_t threads =
      std::clamp<int64_t>(work / kThreadWork, 1, static_cast<int64_t>(torch::stable::get_num_threads()));
  Tasks tasks(arguments, experts, threads);
  tasks.add_without_rows(starts);
  const Tensor scratch = torch::stable::new_empty(rows, {threads, kBackwardScratchBytes}, ScalarType::Byte);
  char* memory = static_cast<char*>(scratch.mutable_data_ptr()); // PyTorch aligns to 64 bytes
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) tasks.work(memory + worker * kBackwardScratchBytes);
  });
}

// Gradients of the weights from this size on are long gone from the caches when an optimizer reads them.
constexpr int64_t kStreamedBytes = int64_t{1} << 24;

// Writes grad_rows, grad_up and grad_down (the last two together), or adds to the last two; each may be left out.
void experts_backward(
    const Tensor& grad_out, const Tensor& rows, const Tensor& pre, const Tensor& up, const Tensor& down,
    const Tensor& offsets, int64_t activation, const std::optional<Tensor>& grad_rows,
    const std::optional<Tensor>& grad_up, const std::optional<Tensor>& grad_down, bool accumulate) {
  const Shape shape = checked_shape(grad_out, rows, pre, up, down, offsets, activation);
  check(
      grad_up.has_value() == grad_down.has_value(),
      "grad_up and grad_down go together: give both or neither.");
  const bool single_gradients = grad_up.has_value() && check_gradients(shape, rows, *grad_up, *grad_down);
  if (grad_rows.has_value()) {
    check_shape("grad_rows", *grad_rows, {shape.rows, shape.hidden});
    check_output("grad_rows", *grad_rows);
    check_dtype("grad_rows", *grad_rows, rows.scalar_type());
  }
  const std::vector<int64_t> starts = checked_starts(torch::stable::contiguous(offsets), shape.rows);
  const Tensor dense[] = {
      torch::stable::contiguous(grad_out), torch::stable::contiguous(rows), torch::stable::contiguous(pre),
      torch::stable::contiguous(up), torch::stable::contiguous(down)};
  prefer_huge_pages(grad_rows);
  if (!accumulate) {
    prefer_huge_pages(grad_up);
    prefer_huge_pages(grad_down);
  }
  BackwardArguments arguments{};
  arguments.grad_out = dense[0].const_data_ptr();
  arguments.rows = dense[1].const_data_ptr();
  arguments.pre = dense[2].const_data_ptr();
  arguments.up = dense[3].const_data_ptr();
  arguments.down = dense[4].const_data_ptr();
  arguments.grad_rows = grad_rows.has_value() ? grad_rows->mutable_data_ptr() : nullptr;
  arguments.grad_up = grad_up.has_value() ? grad_up->mutable_data_ptr() : nullptr;
  arguments.grad_down = grad_down.has_value() ? grad_down->mutable_data_ptr() : nullptr;
  arguments.hidden = shape.hidden;
  arguments.width = shape.width;
  arguments.pre_width = shape.pre_width;
  arguments.activation = static_cast<Activation>(activation);
  arguments.half = rows.scalar_type() == ScalarType::BFloat16;
  arguments.single_gradients = single_gradients;
  arguments.accumulate = accumulate;
  const int64_t weights = shape.experts * shape.hidden * (shape.width + shape.pre_width);
  arguments.stream = weights * (single_gradients ? 4 : 2) >= kStreamedBytes;
  run_tasks(arguments, rows, shape, starts);
}

} // namespace
} // namespace moegate

STABLE_TORCH_LIBRARY_FRAGMENT(moegate, m) {
  m.def(
      "experts_backward_kernel(Tensor grad_out, Tensor rows, Tensor pre, Tensor up, Tensor down, Tensor offsets, "
      "int activation, Tensor(a!)? grad_rows, Tensor(b!)? grad_up, Tensor(c!)? grad_down, bool accumulate) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) {
  m.impl("experts_backward_kernel", TORCH_BOX(&moegate::experts_backward));
}
