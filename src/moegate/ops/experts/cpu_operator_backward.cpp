// The backward of the experts: checks, tasks, threads.
#include "experts/cpu_kernel_backward.h"

#include "cpu/check.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

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

// The tasks in the order they are taken. Those of an expert that read what its `inner` tasks write come one expert
// later, so that a thread seldom waits for another.
class Tasks {
 public:
  Tasks(const BackwardArguments& arguments, const std::vector<int64_t>& starts, int64_t threads)
      : arguments_(arguments), pending_(new std::atomic<int64_t>[starts.size()]()) {
    const int64_t experts = static_cast<int64_t>(starts.size()) - 1;
    int64_t busy = 0;
    for (int64_t expert = 0; expert < experts; ++expert) busy += starts[expert + 1] > starts[expert];
    // With few experts at work, smaller tasks, so that all threads get some.
    columns_ = busy >= 8 * threads ? kBackwardTaskColumns : 64;
    int64_t before = -1;
    for (int64_t expert = 0; expert < experts; ++expert) {
      if (starts[expert + 1] == starts[expert]) {
        if (arguments.grad_up != nullptr && !arguments.accumulate) {
          tasks_.push_back({BackwardStep::no_rows, expert, 0, 0, 0, 0, 0, 0});
        }
        continue;
      }
      add_inner(expert, starts);
      if (before >= 0) add_rest(before, starts);
      before = expert;
    }
    if (before >= 0) add_rest(before, starts);
  }

  // Takes tasks until none is left.
  void work() {
    std::unique_ptr<char, Free> scratch(static_cast<char*>(::operator new(kBackwardScratchBytes, kAlignment)));
    const auto kernel = MOEGATE_SELECT_KERNEL(run_backward_task);
    const int64_t count = static_cast<int64_t>(tasks_.size());
    for (int64_t at = next_.fetch_add(1); at < count; at = next_.fetch_add(1)) {
      const BackwardTask& task = tasks_[at];
      std::atomic<int64_t>& pending = pending_[task.expert];
      if (task.step != BackwardStep::inner) {
        while (pending.load(std::memory_order_acquire) != 0) std::this_thread::yield();
      }
      kernel(arguments_, task, scratch.get());
      if (task.step == BackwardStep::inner) pending.fetch_sub(1, std::memory_order_release);
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };

  // Cuts rows [first, last) and `columns` columns into parts of about equal size.
  void add(BackwardStep step, int64_t expert, int64_t start, int64_t end, int64_t first, int64_t last, int64_t columns) {
    const int64_t parts = (last - first + kBackwardTaskRows - 1) / kBackwardTaskRows;
    const int64_t rows = (last - first + parts - 1) / parts;
    for (int64_t row = first; row < last; row += rows) {
      for (int64_t left = 0; left < columns; left += columns_) {
        tasks_.push_back(
            {step, expert, start, end, row, std::min(last, row + rows), left, std::min(columns, left + columns_)});
        if (step == BackwardStep::inner) pending_[expert].fetch_add(1, std::memory_order_relaxed);
      }
    }
  }

  void add_inner(int64_t expert, const std::vector<int64_t>& starts) {
    const int64_t start = starts[expert], end = starts[expert + 1];
    add(BackwardStep::inner, expert, start, end, start, end, arguments_.width);
  }

  void add_rest(int64_t expert, const std::vector<int64_t>& starts) {
    const int64_t start = starts[expert], end = starts[expert + 1];
    const BackwardArguments& a = arguments_;
    if (a.grad_rows != nullptr) add(BackwardStep::grad_rows, expert, start, end, start, end, a.hidden);
    if (a.grad_up == nullptr) return;
    add(BackwardStep::grad_up, expert, start, end, 0, a.pre_width, a.hidden);
    add(BackwardStep::grad_down, expert, start, end, 0, a.hidden, a.width);
  }

  const BackwardArguments& arguments_;
  std::vector<BackwardTask> tasks_;
  std::unique_ptr<std::atomic<int64_t>[]> pending_; // `inner` tasks of each expert that aren't finished
  std::atomic<int64_t> next_{0};
  int64_t columns_;
};

void zero(void* values, int64_t from_byte, int64_t bytes) {
  if (values != nullptr) std::memset(static_cast<char*>(values) + from_byte, 0, static_cast<size_t>(bytes));
}

void run_tasks(const BackwardArguments& arguments, const Shape& shape, const std::vector<int64_t>& starts) {
  const int64_t bytes = arguments.half ? 2 : 4;
  const int64_t in_use = shape.width == 0 ? 0 : starts.back();
  zero(arguments.grad_rows, in_use * shape.hidden * bytes, (shape.rows - in_use) * shape.hidden * bytes);
  if (shape.hidden == 0 || shape.width == 0) return; // the gradients of the weights have no elements
  const int64_t threads = torch::stable::get_num_threads();
  Tasks tasks(arguments, starts, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) tasks.work();
  });
}

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
  Tensor inner = torch::stable::new_empty(rows, {shape.rows, shape.width});
  Tensor grad_pre = torch::stable::new_empty(rows, {shape.rows, shape.pre_width});
  const BackwardArguments arguments{
      dense[0].const_data_ptr(),
      dense[1].const_data_ptr(),
      dense[2].const_data_ptr(),
      dense[3].const_data_ptr(),
      dense[4].const_data_ptr(),
      inner.mutable_data_ptr(),
      grad_pre.mutable_data_ptr(),
      grad_rows.has_value() ? grad_rows->mutable_data_ptr() : nullptr,
      grad_up.has_value() ? grad_up->mutable_data_ptr() : nullptr,
      grad_down.has_value() ? grad_down->mutable_data_ptr() : nullptr,
      shape.hidden,
      shape.width,
      shape.pre_width,
      static_cast<Activation>(activation),
      rows.scalar_type() == ScalarType::BFloat16,
      single_gradients,
      accumulate};
  run_tasks(arguments, shape, starts);
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
