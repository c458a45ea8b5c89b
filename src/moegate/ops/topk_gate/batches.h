// How many tokens the gate takes through its stages together.
#pragma once

#include <cstdint>

namespace moegate::MOEGATE_ISA {
namespace {

// So many tokens go through each stage together: what one waits for, another can use.
constexpr int64_t kBatch = 8;
constexpr int64_t kBatchKeys = 4096; // of all tokens together, so that they stay close to the processor

inline int64_t tokens_of_a_batch(int64_t keys_of_one) {
  const int64_t fitting = kBatchKeys / keys_of_one;
  return fitting < 1 ? 1 : fitting < kBatch ? fitting : kBatch;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
