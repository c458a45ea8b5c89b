// Selection: the k greatest of a row of integer keys, best first, equal keys by index.
//
// Few of a row's keys are looked at twice: a bound that at least k keys reach is found from the maxima of lanes, the
// keys that reach it are gathered in one pass without branches, and only those are ordered.
#pragma once

#include "cpu/vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The least integer is no key, so that one less than any key is an integer too.
constexpr int32_t kExcludedKey = INT32_MIN + 1;
constexpr int32_t kNanKey = INT32_MIN + 2;
constexpr int32_t kMinusInfinityKey = static_cast<int32_t>(0x807fffff);

// -0 as +0, which it is equal to.
template <class V>
MOEGATE_INLINE V without_negative_zero(const V& values) {
  return values + floats(0.0f);
}

// Integers in the order of the floats, none of which is NaN or -0.
MOEGATE_INLINE Ints sort_keys_of_numbers(Floats values) { return flip_negative(as_ints(values)); }

// Integers in the order of the floats: -0 like +0, NaN below -inf.
MOEGATE_INLINE Ints sort_keys(Floats values) {
  return select(is_nan(values), ints(kNanKey), sort_keys_of_numbers(without_negative_zero(values)));
}

// What lies past the first `count` lanes of a row's last block comes after everything.
MOEGATE_INLINE Ints excluded_past(int64_t count, Ints keys) {
  return count == kLanes ? keys : select(first_lanes(count), keys, ints(kExcludedKey));
}

// What selection works in; all of it is scratch memory. Keys: int32_t*, or another layout that has load() and [].
template <class Keys>
struct SelectionOf {
  Keys keys;        // padded(size); whatever lies past the row is kExcludedKey. Overwritten.
  int64_t* unique;  // capacity + kLanes
  int64_t capacity; // of candidates, at least k
  int32_t* maxima;  // kMostMaxima
};
using Selection = SelectionOf<int32_t*>;

constexpr int64_t kMostMaxima = 1024;
constexpr int64_t kCountedRank = 384; // up to so many candidates are ordered by counting

inline int64_t candidate_capacity(int64_t size, int64_t k) {
  const int64_t wanted = k + k / 2 + 96;
  return wanted < size ? wanted : size;
}

// --- a bound that at least k keys reach ---------------------------------------------------------------------------

template <class Keys>
inline int64_t count_reaching(Keys keys, int64_t size, int32_t bound) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kLanes) count += count_lanes(at_least(load(keys + i), ints(bound)));
  return count;
}

// The k-th greatest of 16 or 32 keys.
template <int64_t blocks>
MOEGATE_INLINE int32_t kth_of_few(const Ints (&keys)[blocks], int64_t k) {
  int32_t all[blocks * kLanes];
  Ints reaching[blocks];
  for (int64_t block = 0; block < blocks; ++block) {
    store(all + block * kLanes, keys[block]);
    reaching[block] = ints(0);
  }
  for (int64_t i = 0; i < blocks * kLanes; ++i) {
    const Ints other = ints(all[i]);
    for (int64_t block = 0; block < blocks; ++block) {
      reaching[block] = count_at_least(reaching[block], other, keys[block]);
    }
  }
  Ints found = ints(INT32_MIN);
  const Ints enough = ints(static_cast<int32_t>(k));
  for (int64_t block = 0; block < blocks; ++block) {
    found = maximum(found, select(at_least(reaching[block], enough), keys[block], ints(INT32_MIN)));
  }
  return greatest(found);
}

// A bound from the maxima of 16 or 32 lanes, for at most as many: at least k keys reach what k of the maxima reach.
template <int64_t blocks, class Keys>
MOEGATE_INLINE int32_t bound_from_few_lanes(Keys keys, int64_t size, int64_t k) {
  Ints most[blocks];
  for (int64_t block = 0; block < blocks; ++block) most[block] = ints(INT32_MIN);
  int64_t i = 0;
  for (; i + blocks * kLanes <= size; i += blocks * kLanes) {
    for (int64_t block = 0; block < blocks; ++block) {
      most[block] = maximum(most[block], load(keys + i + block * kLanes));
    }
  }
  if (i < size) most[0] = maximum(most[0], load(keys + i));
  return kth_of_few(most, k);
}

// With half as many maxima as lanes the bound lets few more keys pass, at half the work.
template <class Keys>
MOEGATE_INLINE int32_t bound_for_few(Keys keys, int64_t size, int64_t k) {
  return 2 * k <= kLanes ? bound_from_few_lanes<1>(keys, size, k) : bound_from_few_lanes<2>(keys, size, k);
}

// A bound that at least k keys reach and, where there is such a one, at most `most`; otherwise the k-th greatest key.
template <class Keys>
inline int32_t bound_by_bisection(Keys keys, int64_t size, int64_t k, int64_t most) {
  Ints low_lanes = ints(INT32_MAX), high_lanes = ints(INT32_MIN);
  for (int64_t i = 0; i < size; i += kLanes) {
    low_lanes = minimum(low_lanes, load(keys + i));
    high_lanes = maximum(high_lanes, load(keys + i));
  }
  int64_t reached = least(low_lanes); // by at least k keys
  int64_t missed = static_cast<int64_t>(greatest(high_lanes)) + 1; // by at least one of the k
  int64_t count = size;
  while (count > most && missed - reached > 1) {
    const int64_t middle = reached + (missed - reached) / 2;
    const int64_t reaching = count_reaching(keys, size, static_cast<int32_t>(middle));
    if (reaching < k) {
      missed = middle;
    } else {
      reached = middle;
      count = reaching;
    }
  }
  return static_cast<int32_t>(reached);
}

// The same from the maxima of `width` lanes, which at least k keys of the row reach when k of the maxima do.
template <class Keys>
inline int32_t bound_from_lanes(Keys keys, int64_t size, int64_t k, int64_t width, int32_t* maxima) {
  for (int64_t lane = 0; lane < width; lane += kLanes) store(maxima + lane, load(keys + lane));
  for (int64_t start = width; start < size; start += width) {
    const int64_t rest = padded(size - start) < width ? padded(size - start) : width;
    for (int64_t lane = 0; lane < rest; lane += kLanes) {
      store(maxima + lane, maximum(load(maxima + lane), load(keys + start + lane)));
    }
  }
  return bound_by_bisection(maxima, width, k, k + k / 8);
}

template <class Keys>
inline int32_t bound_of(const SelectionOf<Keys>& selection, int64_t size, int64_t k) {
  if (k <= kLanes) return bound_for_few(selection.keys, padded(size), k);
  const int64_t width = padded(3 * k);
  if (width <= kMostMaxima && 2 * width <= size) {
    return bound_from_lanes(selection.keys, size, k, width, selection.maxima);
  }
  return bound_by_bisection(selection.keys, padded(size), k, k + k / 4 + 2);
}

// --- the candidates: the keys that reach the bound ----------------------------------------------------------------

// Places of the keys that reach the bound, in order; -1 when they are more than `capacity`.
template <class Keys>
inline int64_t gather_reaching(Keys keys, int64_t size, int32_t bound, int32_t* places, int64_t capacity) {
  const Ints bounds = ints(bound);
  Ints place = lane_numbers();
  int64_t count = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const Mask reaches = at_least(load(keys + i), bounds);
    if (count > capacity) return -1;
    count += append(places + count, reaches, place);
    place = place + ints(kLanes);
  }
  return count > capacity ? -1 : count;
}

// Places of the keys above `kth`, and of as many equal to it as make k, the first ones; `kth` is the k-th greatest.
template <class Keys>
inline int64_t gather_exactly(Keys keys, int64_t size, int32_t kth, int32_t* places, int64_t k) {
  int64_t count = 0;
  for (int64_t i = 0; i < size && count < k; i += kLanes) {
    const Ints place = lane_numbers() + ints(static_cast<int32_t>(i));
    count += append(places + count, greater(load(keys + i), ints(kth)), place);
  }
  for (int64_t i = 0; i < size && count < k; i += kLanes) {
    const Ints place = lane_numbers() + ints(static_cast<int32_t>(i));
    count += append(places + count, equal(load(keys + i), ints(kth)), place);
  }
  return count < k ? count : k;
}

// A key and its place in one integer, so that no two are alike and the greater comes first.
inline int64_t unique_key(int32_t key, int32_t place) {
  const uint64_t high = static_cast<uint64_t>(static_cast<uint32_t>(key)) << 32;
  return static_cast<int64_t>(high | static_cast<uint32_t>(~place));
}
inline int32_t place_of(int64_t unique) { return static_cast<int32_t>(~static_cast<uint32_t>(unique)); }

// --- order --------------------------------------------------------------------------------------------------------

// The slot of each candidate in `order` is the number of greater ones.
inline void order_by_counting(const int64_t* unique, int64_t count, int32_t* order) {
  for (int64_t start = 0; start < count; start += kLanes) {
    const Longs mine_a = load(unique + start), mine_b = load(unique + start + kHalfLanes);
    Longs slots_a = longs(0), slots_b = longs(0);
    for (int64_t i = 0; i < count; ++i) {
      const Longs other = longs(unique[i]);
      slots_a = count_greater(slots_a, other, mine_a);
      slots_b = count_greater(slots_b, other, mine_b);
    }
    int64_t slots[kLanes];
    store(slots, slots_a);
    store(slots + kHalfLanes, slots_b);
    const int64_t rest = count - start < kLanes ? count - start : kLanes;
    for (int64_t lane = 0; lane < rest; ++lane) order[slots[lane]] = place_of(unique[start + lane]);
  }
}

// Puts the greater of each pair first, for `count` pairs at the distance `step`.
inline void exchange(int64_t* first, int64_t count, int64_t step) {
  int64_t i = 0;
  if (step >= kHalfLanes) {
    for (; i + kHalfLanes <= count; i += kHalfLanes) {
      const Longs a = load(first + i), b = load(first + i + step);
      store(first + i, maximum(a, b));
      store(first + i + step, minimum(a, b));
    }
  }
  for (; i < count; ++i) {
    const int64_t a = first[i], b = first[i + step];
    first[i] = a > b ? a : b;
    first[i + step] = a > b ? b : a;
  }
}

// Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M): in place, no branches on data.
inline void sort_descending(int64_t* values, int64_t count) {
  int64_t top = 1;
  while (2 * top < count) top *= 2;
  for (int64_t p = top; p > 0; p /= 2) {
    int64_t q = top, r = 0, d = p;
    while (true) {
      // Pairs (i, i + d) for all i below count - d whose bit p is that of r.
      for (int64_t i = r; i < count - d; i += 2 * p) {
        exchange(values + i, p < count - d - i ? p : count - d - i, d);
      }
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
}

// --- few candidates: the same without a branch that depends on their number ---------------------------------------

constexpr int64_t kFew = 2 * kLanes;

struct Few {
  int32_t keys[kFew + 5 * kLanes]; // in the order of their places, then kExcludedKey
  int32_t places[kFew + 5 * kLanes];
  int64_t count;
};

// Appends those of some blocks' keys that reach the bound. All comparisons come first: the memory that one block's
// candidates go to depends on the number of those before.
template <int64_t blocks, class Keys>
MOEGATE_INLINE int64_t append_reaching(Keys keys, int64_t first, Ints bound, int64_t count, Few& few) {
  Mask reaches[blocks];
  for (int64_t i = 0; i < blocks; ++i) reaches[i] = at_least(load(keys + first + i * kLanes), bound);
  Ints place = lane_numbers() + ints(static_cast<int32_t>(first));
  for (int64_t i = 0; i < blocks; ++i) {
    append(few.keys + count, reaches[i], load(keys + first + i * kLanes));
    count += append(few.places + count, reaches[i], place);
    place = place + ints(kLanes);
  }
  return count;
}

// Whether no more than kFew keys reach the bound. They are in `few` then.
template <class Keys>
MOEGATE_INLINE bool gather_few(Keys keys, int64_t size, int32_t bound, Few& few) {
  constexpr int64_t kBlocks = 4;
  const Ints bounds = ints(bound);
  int64_t count = 0, i = 0;
  for (; i + kBlocks * kLanes <= size && count <= kFew; i += kBlocks * kLanes) {
    count = append_reaching<kBlocks>(keys, i, bounds, count, few);
  }
  for (; i < size && count <= kFew; i += kLanes) count = append_reaching<1>(keys, i, bounds, count, few);
  few.count = count;
  if (count > kFew) return false;
  store(few.keys + count, ints(kExcludedKey));
  return true;
}

// How many of the keys come before each: a greater one, or an equal one on its left.
template <int64_t blocks>
MOEGATE_INLINE void slots_of_few(const Ints (&keys)[blocks], Ints (&slots)[blocks]) {
  // A window that slides over it holds a single 1, in any lane.
  static constexpr int32_t kOneHot[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  int32_t all[blocks * kLanes];
  Ints beaten_above[blocks]; // one less than the key where `other` is on its left, so that an equal one counts
  for (int64_t block = 0; block < blocks; ++block) {
    store(all + block * kLanes, keys[block]);
    beaten_above[block] = keys[block] + ints(-1);
    slots[block] = ints(0);
  }
  for (int64_t i = 0; i < blocks * kLanes; ++i) {
    Ints& own = beaten_above[i / kLanes];
    own = own + load(kOneHot + kLanes - 1 - i % kLanes);
    const Ints other = ints(all[i]);
    for (int64_t block = 0; block < blocks; ++block) {
      slots[block] = count_greater(slots[block], other, beaten_above[block]);
    }
  }
}

template <int64_t blocks>
MOEGATE_INLINE void order_few(const Few& few, int32_t* order) {
  Ints own[blocks], slots[blocks];
  for (int64_t block = 0; block < blocks; ++block) own[block] = load(few.keys + block * kLanes);
  slots_of_few(own, slots);
  int32_t slot_of[blocks * kLanes];
  for (int64_t block = 0; block < blocks; ++block) store(slot_of + block * kLanes, slots[block]);
  for (int64_t i = 0; i < blocks * kLanes; ++i) order[slot_of[i]] = few.places[i];
}

// Writes up to kFew places.
MOEGATE_INLINE void order_few(const Few& few, int32_t* order) {
  if (few.count <= kLanes) order_few<1>(few, order);
  else order_few<2>(few, order);
}

// Orders a row of at most 16 keys.
MOEGATE_INLINE void order_one_block(const int32_t* keys, int32_t* order) {
  const Ints own[1] = {load(keys)};
  Ints slots[1];
  slots_of_few(own, slots);
  int32_t slot_of[kLanes];
  store(slot_of, slots[0]);
  for (int64_t i = 0; i < kLanes; ++i) order[slot_of[i]] = static_cast<int32_t>(i);
}

// --- all together -------------------------------------------------------------------------------------------------

template <class Keys>
inline int64_t gather_candidates(
    const SelectionOf<Keys>& selection, int64_t size, int64_t k, int32_t bound, int32_t* places) {
  const Keys keys = selection.keys;
  const int64_t blocks = padded(size);
  int64_t count = gather_reaching(keys, blocks, bound, places, selection.capacity);
  if (count >= 0) return count;
  bound = bound_by_bisection(keys, blocks, k, selection.capacity);
  count = gather_reaching(keys, blocks, bound, places, selection.capacity);
  return count >= 0 ? count : gather_exactly(keys, blocks, bound, places, k);
}

// A row so short that all of it is ordered needs no bound.
inline bool orders_all(int64_t size) { return size <= 2 * kLanes; }

// Writes the unique keys of the candidates: at least the k greatest, all of which reach the bound. Returns how many.
template <class Keys>
inline int64_t write_candidates(const SelectionOf<Keys>& selection, int64_t size, int64_t k, int32_t bound) {
  const Keys keys = selection.keys;
  int64_t* unique = selection.unique;
  if (orders_all(size)) {
    for (int64_t i = 0; i < size; ++i) unique[i] = unique_key(keys[i], static_cast<int32_t>(i));
    return size;
  }
  // The places lie in the upper half of the unique keys' memory: those overwrite only what has been read.
  int32_t* places = reinterpret_cast<int32_t*>(unique) + selection.capacity + kLanes;
  const int64_t count = gather_candidates(selection, size, k, bound, places);
  for (int64_t i = 0; i < count; ++i) {
    int32_t place;
    std::memcpy(&place, places + i, sizeof place);
    unique[i] = unique_key(keys[place], place);
  }
  return count;
}

// The places of the k greatest candidates, best first; others may follow. `order` has room for all that are counted.
inline void order_candidates(int64_t* unique, int64_t count, int64_t k, int32_t* order) {
  if (count <= kCountedRank) return order_by_counting(unique, count, order);
  sort_descending(unique, count);
  for (int64_t i = 0; i < k; ++i) order[i] = place_of(unique[i]);
}

// Whether so few are chosen that their candidates are few as well, but for ties.
inline bool chooses_few(int64_t size, int64_t k) { return k <= kLanes || size <= kLanes; }

inline const int32_t* select_among_many(const Selection& selection, int64_t size, int64_t k) {
  const int32_t bound = orders_all(size) ? kExcludedKey : bound_of(selection, size, k);
  const int64_t count = write_candidates(selection, size, k, bound);
  order_candidates(selection.unique, count, k, selection.keys);
  return selection.keys;
}

// The places of the k greatest of `size` keys, best first. The answer lies in the memory of the keys.
inline const int32_t* select_greatest(const Selection& selection, int64_t size, int64_t k) {
  int32_t* keys = selection.keys;
  if (size <= kLanes) {
    order_one_block(keys, keys);
    return keys;
  }
  if (chooses_few(size, k)) {
    Few few;
    const int64_t blocks = padded(size);
    if (gather_few(keys, blocks, bound_for_few(keys, blocks, k), few)) {
      order_few(few, keys);
      return keys;
    }
  }
  return select_among_many(selection, size, k);
}

} // namespace
} // namespace moegate::MOEGATE_ISA
