// The kernel of portable_scores, for rows begin to end.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace moegate {

enum class PortableScore : int64_t { softmax, sigmoid, sqrt_softplus };
enum class PortableElement : int64_t { float32, bfloat16, float16 };

struct PortableArguments {
  const void* logits; // [T, E], contiguous
  PortableElement element;
  PortableScore score;
  int64_t row_size;
  float* scores; // [T, E]
};

} // namespace moegate

MOEGATE_DECLARE_KERNEL(
    void, portable_scores_rows, (const PortableArguments& arguments, int64_t begin, int64_t end));
