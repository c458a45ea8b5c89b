// Rows of logits, sixteen at a time.
#pragma once

#include "cpu/vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

// The logits of one token, one after another.
template <class Element>
struct Row {
  const Element* logits;
  int64_t size;
};

struct RowFacts {
  bool has_nan;
  float greatest; // of the logits that are not NaN
};

// Calls visit(first, logits, count) for each block of 16 logits; past the end of the row a block holds -inf.
template <class Element, class Visit>
inline void each_block(const Row<Element>& row, Visit&& visit) {
  int64_t i = 0;
  for (; i + kLanes <= row.size; i += kLanes) visit(i, load_as_floats(row.logits + i), kLanes);
  if (i < row.size) {
    const int64_t rest = row.size - i;
    visit(i, select(first_lanes(rest), load_as_floats(row.logits + i, rest), floats(-kInfinity)), rest);
  }
}

template <class Element>
inline RowFacts facts_of(const Row<Element>& row) {
  Mask nan = no_lanes();
  Floats most = floats(-kInfinity);
  each_block(row, [&](int64_t, Floats logits, int64_t) {
    nan = nan | is_nan(logits);
    most = maximum(logits, most);
  });
  return {any(nan), greatest(most)};
}

} // namespace
} // namespace moegate::MOEGATE_ISA
