// Reductions of a row by one scalar chain each, in place of lanes and trees; the bounds are those of cpu/selection.h.
#pragma once

#include "cpu/selection.h"
#include "cpu/logit_rows.h"

namespace moegate::MOEGATE_ISA {
namespace {

// Empty, but the compiler has to take it that `value` is changed here: a loop that carries it stays a scalar chain.
template <class Number>
inline void keep_scalar(Number& value) {
  asm("" : "+r"(value));
}

inline bool has_nan_serially(const Row<float>& row) {
  int32_t found = 0;
  for (int64_t i = 0; i < row.size; ++i) {
    found |= row.logits[i] != row.logits[i];
    keep_scalar(found);
  }
  return found != 0;
}

inline int32_t greatest_serially(const int32_t* keys, int64_t size, int64_t step) {
  int32_t most = INT32_MIN;
  for (int64_t i = 0; i < size; i += step) {
    most = keys[i] > most ? keys[i] : most;
    keep_scalar(most);
  }
  return most;
}

inline int64_t count_reaching_serially(const int32_t* keys, int64_t size, int32_t bound) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    count += keys[i] >= bound;
    keep_scalar(count);
  }
  return count;
}

// The maxima of `width` lanes, lane by lane; those behind the row are INT32_MIN.
inline void write_maxima_serially(const int32_t* keys, int64_t size, int64_t width, int32_t* maxima) {
  for (int64_t lane = 0; lane < width; ++lane) maxima[lane] = greatest_serially(keys + lane, size - lane, width);
}

// The k-th greatest: each key goes down `best`, a list of the k greatest so far, and the lesser of two goes on.
inline int32_t kth_serially(const int32_t* keys, int64_t size, int64_t k, int32_t* best) {
  for (int64_t i = 0; i < k; ++i) best[i] = INT32_MIN;
  for (int64_t i = 0; i < size; ++i) {
    int32_t falling = keys[i];
    for (int64_t slot = 0; slot < k; ++slot) {
      const int32_t held = best[slot];
      best[slot] = held > falling ? held : falling;
      falling = held > falling ? falling : held;
      keep_scalar(falling);
    }
  }
  return best[k - 1];
}

inline int32_t bisect_serially(const int32_t* keys, int64_t size, int64_t k, int64_t most) {
  int64_t reached = INT32_MAX;
  for (int64_t i = 0; i < size; ++i) {
    reached = keys[i] < reached ? keys[i] : reached;
    keep_scalar(reached);
  }
  int64_t missed = static_cast<int64_t>(greatest_serially(keys, size, 1)) + 1;
  int64_t count = size;
  while (count > most && missed - reached > 1) {
    const int64_t middle = reached + (missed - reached) / 2;
    const int64_t reaching = count_reaching_serially(keys, size, static_cast<int32_t>(middle));
    if (reaching < k) {
      missed = middle;
    } else {
      reached = middle;
      count = reaching;
    }
  }
  return static_cast<int32_t>(reached);
}

inline int32_t bound_serially(const Selection& selection, int64_t size, int64_t k) {
  const int64_t blocks = padded(size);
  if (k <= kLanes) {
    const int64_t width = 2 * k <= kLanes ? kLanes : 2 * kLanes;
    write_maxima_serially(selection.keys, blocks, width, selection.maxima);
    return kth_serially(selection.maxima, width, k, selection.maxima + width);
  }
  const int64_t width = padded(3 * k);
  if (width > kMostMaxima || 2 * width > size) return bisect_serially(selection.keys, blocks, k, k + k / 4 + 2);
  write_maxima_serially(selection.keys, blocks, width, selection.maxima);
  return bisect_serially(selection.maxima, width, k, k + k / 8);
}

} // namespace
} // namespace moegate::MOEGATE_ISA
