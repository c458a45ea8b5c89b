// Scratch memory for a thread, and how much work a thread is given.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "cpu/check.h"

namespace moegate {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<void, Free>;

// Null when there is no more memory.
inline Scratch scratch_memory(int64_t size) {
  return Scratch(std::aligned_alloc(64, (static_cast<size_t>(size) + 64) / 64 * 64));
}

// How many items keep a thread busy for some 20 µs: fewer are not worth a second one.
inline int64_t items_per_thread(double nanoseconds_of_one) {
  const double items = 20000.0 / nanoseconds_of_one;
  return items < 1.0 ? 1 : static_cast<int64_t>(items);
}

// body(scratch, begin, end) for parts of 0 to count, on as many threads as are worth it.
template <class Body>
void parallel_with_scratch(int64_t count, double nanoseconds_of_one, int64_t scratch_size, const Body& body) {
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, count, items_per_thread(nanoseconds_of_one), [&](int64_t begin, int64_t end) {
    const Scratch scratch = scratch_memory(scratch_size);
    if (scratch) body(scratch.get(), begin, end);
    else out_of_memory = true; // an exception must not leave a thread
  });
  check(!out_of_memory, "There are no ", scratch_size, " bytes of memory for a thread to work in.");
}

} // namespace moegate
