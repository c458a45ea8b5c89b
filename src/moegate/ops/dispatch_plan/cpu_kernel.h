// The two passes of a stable counting sort of slots by expert.
#pragma once

#include "cpu/isa.h"

namespace moegate {

struct PlanArguments {
  const void* index; // [T, K], int32 or int64; -1 is an empty slot
  bool index_is_int32;
  int64_t token_stride; // in elements
  int64_t slot_stride;
  int64_t top_k;
  int64_t num_experts;
  const int64_t* limit; // [E], the place behind the last that an expert has; null without a capacity
  int64_t* slot; // [R]
  int64_t* inverse; // [T, K]
};

} // namespace moegate

// Adds the slots of tokens [begin, end) to counts [E + 1], those of expert e at e + 1, empty ones at 0.
// Returns the first slot that holds no expert number, or -1.
MOEGATE_DECLARE_KERNEL(
    int64_t, count_slots, (const PlanArguments& arguments, int64_t begin, int64_t end, int64_t* counts))

// Writes slot and inverse for tokens [begin, end); next [E + 1] holds the next free place of expert e at e + 1.
MOEGATE_DECLARE_KERNEL(
    void, place_slots, (const PlanArguments& arguments, int64_t begin, int64_t end, int64_t* next))
