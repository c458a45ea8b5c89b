// Second stage: the best groups of neighbouring experts are kept, the experts of all others excluded.
#pragma once

#include "cpu/selection.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Groups {
  int64_t count;
  int64_t kept;
  bool by_top2_sum;
  int32_t* limits;     // padded(count): kExcludedKey for a dropped group, otherwise the greatest integer
  Selection selection; // its keys are the groups'
};

// The two greatest of several keys, in each lane.
struct TopTwo {
  Ints first, second;
};

inline TopTwo merged(TopTwo a, TopTwo b) {
  return {maximum(a.first, b.first), maximum(minimum(a.first, b.first), maximum(a.second, b.second))};
}

inline TopTwo top_two_in_lanes(const int32_t* keys, int64_t size) {
  const Ints none = ints(kExcludedKey);
  TopTwo best = {none, none};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Ints block = load(keys + i);
    const Ints own = size - i < kLanes ? select(first_lanes(size - i), block, none) : block;
    best = {maximum(best.first, own), maximum(best.second, minimum(best.first, own))};
  }
  return best;
}

// The top two of 2^(level + 1) groups from `group` on, each in as many lanes as all have room for.
template <int level>
inline TopTwo top_two_of_groups(const int32_t* keys, int64_t size, int64_t group, int64_t count) {
  if (group >= count) return {ints(kExcludedKey), ints(kExcludedKey)};
  if constexpr (level < 0) {
    return top_two_in_lanes(keys + group * size, size);
  } else {
    const TopTwo a = top_two_of_groups<level - 1>(keys, size, group, count);
    const TopTwo b = top_two_of_groups<level - 1>(keys, size, group + (1 << level), count);
    const PairOfInts first = interleaved<level>(a.first, b.first), second = interleaved<level>(a.second, b.second);
    return merged({first.first, second.first}, {first.second, second.second});
  }
}

// The keys of 16 groups: of their greatest score, or of the sum of their two greatest; a NaN counts as -inf.
inline Ints group_keys(const Groups& groups, const int32_t* keys, int64_t size, int64_t group) {
  const TopTwo best = top_two_of_groups<3>(keys, size, group, groups.count);
  const Ints least = ints(kMinusInfinityKey);
  const Ints first = maximum(in_order_of_vectors(best.first), least);
  if (!groups.by_top2_sum) return first;
  const Ints second = maximum(in_order_of_vectors(best.second), least);
  return sort_keys(as_floats(flip_negative(first)) + as_floats(flip_negative(second)));
}

// Decides from the experts' keys which groups are kept; reads up to kLanes keys past the last one.
inline void choose_groups(const Groups& groups, const int32_t* keys, int64_t num_experts) {
  const int64_t size = num_experts / groups.count;
  int32_t* judged = groups.selection.keys;
  for (int64_t group = 0; group < groups.count; group += kLanes) {
    const int64_t count = groups.count - group < kLanes ? groups.count - group : kLanes;
    store(judged + group, excluded_past(count, group_keys(groups, keys, size, group)));
  }
  if (groups.count <= kLanes) {
    const Ints own[1] = {load(judged)};
    Ints slots[1];
    slots_of_few(own, slots);
    const Mask kept = greater(ints(static_cast<int32_t>(groups.kept)), slots[0]);
    store(groups.limits, select(kept, ints(INT32_MAX), ints(kExcludedKey)));
    return;
  }
  for (int64_t group = 0; group < groups.count; ++group) groups.limits[group] = kExcludedKey;
  const int32_t* order = select_greatest(groups.selection, groups.count, groups.kept);
  for (int64_t i = 0; i < groups.kept; ++i) groups.limits[order[i]] = INT32_MAX;
}

inline void exclude_dropped_groups(const Groups& groups, int32_t* keys, int64_t num_experts) {
  const int64_t size = num_experts / groups.count;
  for (int64_t group = 0; group < groups.count; ++group) {
    int32_t* own = keys + group * size;
    const int32_t limit = groups.limits[group];
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(own + i, minimum(load(own + i), ints(limit)));
    for (; i < size; ++i) own[i] = own[i] < limit ? own[i] : limit;
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
