// The backward of the experts as tasks: what one needs, and the kernel that runs one.
#pragma once

#include "cpu/isa.h"
#include "experts/cpu_kernel.h" // the activations

#include <cstdint>

namespace moegate {

// What a task computes, for the rows of one expert:
//   inner      from grad_out, down and pre: the gradient before the activation, and the inner values once more
//   grad_rows  from that gradient and up
//   grad_up    from that gradient and the rows
//   grad_down  from grad_out and the inner values
//   no_rows    zeros in the gradients of an expert that got none
enum class BackwardStep : int64_t { inner, grad_rows, grad_up, grad_down, no_rows };

// All matrices are row-major and dense. `half`: rows, weights and everything between are bfloat16, else float32.
struct BackwardArguments {
  const void* grad_out; // [R, D]
  const void* rows;     // [R, D]
  const void* pre;      // [R, P], P = 2F when gated, else F
  const void* up;       // [E, P, D]
  const void* down;     // [E, D, F]
  void* inner;          // [., F], written and read between the steps
  void* grad_pre;       // [., P], likewise
  void* grad_rows;      // [R, D]
  void* grad_up;        // [E, P, D]
  void* grad_down;      // [E, D, F]
  int64_t hidden;       // D
  int64_t width;        // F
  int64_t pre_width;    // P
  Activation activation;
  bool half;
  bool single_gradients; // the gradients of the weights are float32, whatever the weights are
  bool accumulate;       // they are added to what is there
  bool stream;           // they are too large to stay in the caches: what is written once goes past them
};

// `first` to `last` are rows of the routed rows for `inner` and `grad_rows`, and rows of the gradient's matrix for
// `grad_up` and `grad_down`; `left` to `right` are columns of the result.
struct BackwardTask {
  BackwardStep step;
  int64_t expert;
  int64_t start, end; // the expert's rows
  int64_t between;    // where they begin in `inner` and `grad_pre`
  int64_t first, last;
  int64_t left, right;
};

// A task's result is at most this large, so that its operands stay in the second-level cache.
constexpr int64_t kBackwardTaskRows = 256;
constexpr int64_t kBackwardTaskColumns = 256;
// How far along the reduction a block of the operands reaches.
constexpr int64_t kBackwardDepth = 128;

// Bytes of scratch memory that a task needs, aligned to 64: two blocks of operands and the result in float32.
constexpr int64_t kBackwardScratchBytes =
    4 * (kBackwardDepth * (kBackwardTaskRows + kBackwardTaskColumns) + kBackwardTaskRows * kBackwardTaskColumns);

} // namespace moegate

MOEGATE_DECLARE_KERNEL(
    void, run_backward_task,
    (const ::moegate::BackwardArguments& arguments, const ::moegate::BackwardTask& task, void* scratch));
