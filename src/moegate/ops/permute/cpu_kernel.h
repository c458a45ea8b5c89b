// Rows from tokens, by the slot of each row.
#pragma once

#include "cpu/element.h"
#include "cpu/isa.h"

namespace moegate {

struct PermuteArguments {
  Element element;
  int64_t hidden_size; // D
  const void* hidden; // [T, D]
  int64_t hidden_stride; // elements from one token to the next
  const int64_t* slot; // [R]; -1: an empty row
  int64_t num_slots; // T * K
  int64_t top_k; // K
  const void* weights; // [T, K] float32, or float64 for float64; null: 1
  const void* partner; // [R, D] to take dot products with, or null
  int64_t partner_stride;
  void* dots; // [T, K], the type of the weights: hidden of the row's token times the partner's row; null without one
  void* rows; // [R, D], contiguous
};

} // namespace moegate

// Writes rows [begin, end), each once. Returns false when a slot is out of range; its row is then left as it was.
MOEGATE_DECLARE_KERNEL(bool, permute_rows, (const PermuteArguments& arguments, int64_t begin, int64_t end))
