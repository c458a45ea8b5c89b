// The kernel of ordered_topk and topk_by_key, for rows begin to end.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace moegate {

enum class TopKElement : int64_t { float32, bfloat16, float16, int32_key };

struct TopKArguments {
  const void* values; // [T, N]
  TopKElement element;
  int64_t row_stride;
  int64_t element_stride;
  const uint8_t* excluded; // [T, N] of bool, whose bytes need not be 0 or 1; or null
  int64_t excluded_row_stride;
  int64_t excluded_element_stride;
  int64_t row_size;
  int64_t k;
  int64_t* index; // [T, k]
};

} // namespace moegate

// Bytes of scratch memory that a thread needs, aligned to 64.
MOEGATE_DECLARE_KERNEL(int64_t, ordered_topk_scratch, (const TopKArguments& arguments));
MOEGATE_DECLARE_KERNEL(
    void, ordered_topk_rows, (const TopKArguments& arguments, void* scratch, int64_t begin, int64_t end));
