// The classic ways to find the k greatest of a row, as a study: one scalar implementation each, on the same keys.
#pragma once

#include "cpu/isa.h"

#include <cstdint>

namespace moegate {

enum class Algorithm : int64_t { full_sort = 0, heap = 1, quickselect = 2, blocked = 3 };

// Keys of a block in the blocked algorithm: 2 KiB, a small part of any first-level cache.
constexpr int64_t kBlockSize = 256;

struct StudyArguments {
  const float* values; // [rows, num_elements], contiguous
  int64_t num_elements;
  int64_t k;
  Algorithm algorithm;
  int64_t* index; // [rows, k], contiguous
};

// Keys of 8 bytes that a thread needs beside input and output. Static: an inline function compiled for one instruction
// set must not be merged into code that runs on another.
static inline int64_t scratch_keys(Algorithm algorithm, int64_t num_elements, int64_t k) {
  switch (algorithm) {
    case Algorithm::heap: return k;
    case Algorithm::blocked: return kBlockSize + 2 * k;
    default: return num_elements; // a sort or a partition moves keys, and the input must stay as it is
  }
}

} // namespace moegate

MOEGATE_DECLARE_KERNEL(
    void, topk_by_algorithm, (const StudyArguments& arguments, uint64_t* scratch, int64_t begin, int64_t end));
