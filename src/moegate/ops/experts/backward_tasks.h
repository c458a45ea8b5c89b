// The tasks of a backward, and the order that lets threads take one after the other with hardly a wait.
#pragma once

#include "experts/cpu_kernel_backward.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace moegate {
namespace {

// An expert that got rows, the place of its rows in `inner` and `grad_pre`, and how many of its tasks aren't finished.
struct Busy {
  int64_t expert, start, end, between;
  std::atomic<int64_t> inner{0}, rest{0};
};

// The busy experts. Where that saves memory, three of them at a time share the place between the steps in turn.
class BusyExperts {
 public:
  static constexpr int64_t kPlaces = 3;

  explicit BusyExperts(const std::vector<int64_t>& starts) : experts_(starts.size()) {
    int64_t most = 0;
    for (size_t expert = 0; expert + 1 < starts.size(); ++expert) {
      if (starts[expert + 1] == starts[expert]) continue;
      Busy& busy = experts_[count_++];
      busy.expert = static_cast<int64_t>(expert);
      busy.start = starts[expert];
      busy.end = starts[expert + 1];
      most = std::max(most, busy.end - busy.start);
    }
    shared_ = kPlaces * most < starts.back();
    rows_ = shared_ ? kPlaces * most : starts.back();
    for (int64_t at = 0; at < count_; ++at) experts_[at].between = shared_ ? at % kPlaces * most : experts_[at].start;
  }

  int64_t count() const { return count_; }
  int64_t rows() const { return rows_; } // that `inner` and `grad_pre` need
  Busy& operator[](int64_t at) { return experts_[at]; }
  // Whose place the expert takes over, or null.
  Busy* before(int64_t at) { return shared_ && at >= kPlaces ? &experts_[at - kPlaces] : nullptr; }

 private:
  std::vector<Busy> experts_;
  int64_t count_ = 0, rows_ = 0;
  bool shared_ = false;
};

struct Queued {
  BackwardTask task;
  std::atomic<int64_t>* waits_for; // until this is 0, or null
  std::atomic<int64_t>* finishes;  // this goes down by 1, or null
};

// The tasks in the order they are taken. Those that read what an expert's `inner` tasks write come after the next
// expert's `inner` tasks, so that a thread seldom waits for another; and as each waits only for tasks before it, some
// thread can always go on.
class Tasks {
 public:
  Tasks(const BackwardArguments& arguments, BusyExperts& experts, int64_t threads) : arguments_(arguments) {
    // With few experts at work, smaller tasks, so that all threads get some.
    columns_ = experts.count() >= 8 * threads ? kBackwardTaskColumns : 64;
    for (int64_t at = 0; at <= experts.count(); ++at) {
      if (at < experts.count()) add_inner(experts[at], experts.before(at));
      if (at > 0) add_rest(experts[at - 1]);
    }
  }

  void add_without_rows(const std::vector<int64_t>& starts) {
    if (arguments_.grad_up == nullptr || arguments_.accumulate) return;
    for (size_t expert = 0; expert + 1 < starts.size(); ++expert) {
      if (starts[expert + 1] != starts[expert]) continue;
      BackwardTask task{};
      task.step = BackwardStep::no_rows;
      task.expert = static_cast<int64_t>(expert);
      tasks_.push_back({task, nullptr, nullptr});
    }
  }

  // Takes tasks until none is left; `scratch` is the thread's own.
  void work(void* scratch) {
    const auto kernel = MOEGATE_SELECT_KERNEL(run_backward_task);
    const int64_t count = static_cast<int64_t>(tasks_.size());
    for (int64_t at = next_.fetch_add(1); at < count; at = next_.fetch_add(1)) {
      const Queued& queued = tasks_[at];
      while (queued.waits_for != nullptr && queued.waits_for->load(std::memory_order_acquire) != 0) {
        std::this_thread::yield();
      }
      kernel(arguments_, queued.task, scratch);
      if (queued.finishes != nullptr) queued.finishes->fetch_sub(1, std::memory_order_release);
    }
  }

 private:
  // Cuts rows [first, last) and `columns` columns into parts of about equal size.
  void add(
      BackwardStep step, const Busy& busy, int64_t first, int64_t last, int64_t columns,
      std::atomic<int64_t>* waits_for, std::atomic<int64_t>* finishes) {
    const int64_t parts = (last - first + kBackwardTaskRows - 1) / kBackwardTaskRows;
    const int64_t rows = (last - first + parts - 1) / parts;
    for (int64_t row = first; row < last; row += rows) {
      for (int64_t left = 0; left < columns; left += columns_) {
        const int64_t below = std::min(last, row + rows), right = std::min(columns, left + columns_);
        const BackwardTask task{step, busy.expert, busy.start, busy.end, busy.between, row, below, left, right};
        tasks_.push_back({task, waits_for, finishes});
        finishes->fetch_add(1, std::memory_order_relaxed);
      }
    }
  }

  void add_inner(Busy& busy, Busy* before) {
    std::atomic<int64_t>* waits_for = before == nullptr ? nullptr : &before->rest;
    add(BackwardStep::inner, busy, busy.start, busy.end, arguments_.width, waits_for, &busy.inner);
  }

  void add_rest(Busy& busy) {
    const BackwardArguments& a = arguments_;
    if (a.grad_rows != nullptr) {
      add(BackwardStep::grad_rows, busy, busy.start, busy.end, a.hidden, &busy.inner, &busy.rest);
    }
    if (a.grad_up == nullptr) return;
    add(BackwardStep::grad_up, busy, 0, a.pre_width, a.hidden, &busy.inner, &busy.rest);
    add(BackwardStep::grad_down, busy, 0, a.hidden, a.width, &busy.inner, &busy.rest);
  }

  const BackwardArguments& arguments_;
  std::vector<Queued> tasks_;
  std::atomic<int64_t> next_{0};
  int64_t columns_;
};

} // namespace
} // namespace moegate
