// Rows of logits, sixteen at a time.
#pragma once

#include "cpu/several.h"

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
  float greatest; // of the logits that are not NaN; NaN where nobody looked
};

// Calls visit(first, logits, count) for all blocks of 16 logits in order, several together; past the end of the row the
// last block holds -inf, and count says how many of its logits are real.
template <int64_t together = kTogether, class Element, class Visit>
MOEGATE_INLINE void each_block(const Row<Element>& row, Visit&& visit) {
  const auto blocks = [&]<int64_t n>(int64_t first) MOEGATE_INLINED {
    return each_of<n>([&](int64_t i) MOEGATE_INLINED { return load_as_floats(row.logits + first + i * kLanes); });
  };
  int64_t i = 0;
  if constexpr (together > 1) {
    for (; i + together * kLanes <= row.size; i += together * kLanes) {
      visit(i, blocks.template operator()<together>(i), kLanes);
    }
  }
  for (; i + kLanes <= row.size; i += kLanes) visit(i, blocks.template operator()<1>(i), kLanes);
  if (i == row.size) return;
  const int64_t rest = row.size - i;
  const Floats last = select(first_lanes(rest), load_as_floats(row.logits + i, rest), floats(-kInfinity));
  visit(i, Several<Floats, 1>{{last}}, rest);
}

// Calls visit(first, one of the blocks) for each of several blocks.
template <class V, int64_t n, class Visit>
MOEGATE_INLINE void one_by_one(int64_t first, const Several<V, n>& blocks, Visit&& visit) {
  [&]<int64_t... i>(std::integer_sequence<int64_t, i...>) MOEGATE_INLINED {
    (visit(first + i * kLanes, blocks.v[i]), ...);
  }(std::make_integer_sequence<int64_t, n>());
}

template <class Element>
inline RowFacts facts_of(const Row<Element>& row) {
  Mask nan = no_lanes();
  Floats most = floats(-kInfinity);
  each_block(row, [&](int64_t first, const auto& blocks, int64_t) MOEGATE_INLINED {
    one_by_one(first, blocks, [&](int64_t, Floats logits) MOEGATE_INLINED {
      nan = nan | is_nan(logits);
      most = maximum(logits, most);
    });
  });
  return {any(nan), greatest(most)};
}

} // namespace
} // namespace moegate::MOEGATE_ISA
