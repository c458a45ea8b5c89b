// Second stage: the best groups of neighbouring experts are kept, the experts of all others excluded.
#pragma once

#include "cpu/selection.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Groups {
  int64_t count;
  int64_t kept;
  bool by_top2_sum;
  bool* is_kept;       // [count]
  Selection selection; // its keys are the groups'
};

// The two greatest in each lane, and of all lanes.
struct TopTwo {
  Ints first, second;
};

inline TopTwo merged(TopTwo a, TopTwo b) {
  return {maximum(a.first, b.first), maximum(minimum(a.first, b.first), maximum(a.second, b.second))};
}

template <int step>
inline TopTwo merged_with_rotated(TopTwo a) {
  return merged(a, {rotated<step>(a.first), rotated<step>(a.second)});
}

inline TopTwo across_lanes(TopTwo a) {
  return merged_with_rotated<1>(merged_with_rotated<2>(merged_with_rotated<4>(merged_with_rotated<8>(a))));
}

inline TopTwo top_two_of(const int32_t* keys, int64_t size) {
  const Ints none = ints(kExcludedKey);
  TopTwo best = {none, none};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Ints block = load(keys + i);
    const Ints own = size - i < kLanes ? select(first_lanes(size - i), block, none) : block;
    best = {maximum(best.first, own), maximum(best.second, minimum(best.first, own))};
  }
  return across_lanes(best);
}

inline int32_t flipped_negative(int32_t key) { return key ^ ((key >> 31) & 0x7fffffff); }
inline float value_of_key(int32_t key) { return float_of(static_cast<uint32_t>(flipped_negative(key))); }
inline int32_t sort_key(float value) {
  return value == value ? flipped_negative(static_cast<int32_t>(bits_of(value + 0.0f))) : kNanKey;
}
inline int32_t nan_as_minus_infinity(int32_t key) { return key > kMinusInfinityKey ? key : kMinusInfinityKey; }

// The key of a group: of its greatest score, or of the sum of its two greatest; a NaN counts as -inf.
inline int32_t group_key(TopTwo best, bool by_top2_sum) {
  const int32_t first = nan_as_minus_infinity(first_lane(best.first));
  if (!by_top2_sum) return first;
  return sort_key(value_of_key(first) + value_of_key(nan_as_minus_infinity(first_lane(best.second))));
}

// Decides from the experts' keys which groups are kept; reads up to kLanes keys past the last one.
inline void choose_groups(const Groups& groups, const int32_t* keys, int64_t num_experts) {
  const int64_t size = num_experts / groups.count;
  int32_t* group_keys = groups.selection.keys;
  for (int64_t group = 0; group < groups.count; ++group) {
    group_keys[group] = group_key(top_two_of(keys + group * size, size), groups.by_top2_sum);
    groups.is_kept[group] = false;
  }
  for (int64_t i = groups.count; i < padded(groups.count); ++i) group_keys[i] = kExcludedKey;
  const int32_t* order = select_greatest(groups.selection, groups.count, groups.kept);
  for (int64_t i = 0; i < groups.kept; ++i) groups.is_kept[order[i]] = true;
}

inline void exclude_dropped_groups(const Groups& groups, int32_t* keys, int64_t num_experts) {
  const int64_t size = num_experts / groups.count;
  for (int64_t group = 0; group < groups.count; ++group) {
    if (groups.is_kept[group]) continue;
    int32_t* group_keys = keys + group * size;
    for (int64_t i = 0; i < size; ++i) group_keys[i] = kExcludedKey;
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
