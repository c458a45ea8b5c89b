// Sums of rows for each token, by the row of each slot.
#pragma once

#include "cpu/element.h"
#include "cpu/isa.h"

namespace moegate {

struct CombineArguments {
  Element element;
  int64_t hidden_size; // D
  const void* rows; // [R, D]
  int64_t row_stride; // elements from one row to the next
  int64_t num_rows; // R
  const int64_t* inverse; // [T, K]; -1: an empty slot
  int64_t top_k; // K
  const void* weights; // [T, K] float32, or float64 for float64; null: 1
  void* out; // [T, D], contiguous; null: only dot products
  const void* partner; // [T, D] to take dot products with, or null
  int64_t partner_stride;
  void* dots; // [T, K], the type of the weights: the slot's row times the partner's token; null without a partner
};

} // namespace moegate

// Writes tokens [begin, end), each once. Returns false when a row is out of range; its token is then left as it was.
MOEGATE_DECLARE_KERNEL(bool, combine_rows, (const CombineArguments& arguments, int64_t begin, int64_t end))
