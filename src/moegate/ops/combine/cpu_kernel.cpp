#include "combine/cpu_kernel.h"

#include "cpu/rows.h"

namespace moegate::MOEGATE_ISA {
namespace {

template <class Element>
inline void prefetch(const Element* from, int64_t count) {
  const char* line = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(Element)); byte += 64) {
    __builtin_prefetch(line + byte, 0, 2);
  }
}

// The slots of one token.
template <class Element>
struct Slots {
  using Real = typename Wide<Element>::Real;

  const Element* rows;
  int64_t row_stride;
  const int64_t* row; // [K]
  const Real* weights; // [K] or null
  int64_t top_k;

  const Element* at(int64_t k) const { return rows + row[k] * row_stride; }
};

// to[first + i] = Σ_k weight[k] · row_k[first + i] for `kWidth` times sixteen elements; the sums stay in registers.
// The same part of the next token's rows is fetched on the way: they lie too far apart to be foreseen.
template <int kWidth, bool kWeighted, class Element>
inline void add_block(
    const Slots<Element>& slots, const Slots<Element>& next, int64_t first, int64_t count, Element* to) {
  using Real = typename Wide<Element>::Real;
  typename Wide<Element>::Lanes sums[kWidth];
  for (int i = 0; i < kWidth; ++i) sums[i] = spread(Real(0));
  for (int64_t k = 0; k < slots.top_k; ++k) {
    if constexpr (kWidth == 4) prefetch(next.at(k) + first, kBlock);
    if (slots.row[k] < 0) continue;
    const Element* from = slots.at(k) + first;
    for (int i = 0; i < kWidth; ++i) {
      auto values = load_lanes(from + i * kLanes, count);
      if constexpr (kWeighted) values = values * spread(slots.weights[k]);
      sums[i] = sums[i] + values;
    }
  }
  for (int i = 0; i < kWidth; ++i) store_lanes(to + first + i * kLanes, sums[i], count);
}

template <bool kWeighted, class Element>
inline void add_token(const Slots<Element>& slots, const Slots<Element>& next, int64_t size, Element* to) {
  int64_t first = 0;
  for (; first + kBlock <= size; first += kBlock) add_block<4, kWeighted>(slots, next, first, kLanes, to);
  for (; first + kLanes <= size; first += kLanes) add_block<1, kWeighted>(slots, next, first, kLanes, to);
  if (first < size) add_block<1, kWeighted>(slots, next, first, size - first, to);
}

// Rows and tokens of one type.
template <class Element>
struct Tokens {
  using Real = typename Wide<Element>::Real;

  const CombineArguments& a;
  const Element* rows = static_cast<const Element*>(a.rows);
  const Element* partner = static_cast<const Element*>(a.partner);
  const Real* weights = static_cast<const Real*>(a.weights);

  Slots<Element> slots_of(int64_t token) const {
    const int64_t slot = token * a.top_k;
    return {rows, a.row_stride, a.inverse + slot, weights == nullptr ? nullptr : weights + slot, a.top_k};
  }
  bool in_range(const Slots<Element>& slots) const {
    bool inside = true;
    for (int64_t k = 0; k < slots.top_k; ++k) inside = inside && slots.row[k] >= -1 && slots.row[k] < a.num_rows;
    return inside;
  }

  void write(int64_t token, const Slots<Element>& slots, const Slots<Element>& next) const {
    // First, so that the rows are in the cache when they are added.
    if (a.dots != nullptr) write_dots(token, slots);
    if (a.out == nullptr) return;
    Element* to = static_cast<Element*>(a.out) + token * a.hidden_size;
    weights == nullptr ? add_token<false>(slots, next, a.hidden_size, to)
                       : add_token<true>(slots, next, a.hidden_size, to);
  }

  void write_dots(int64_t token, const Slots<Element>& slots) const {
    const Element* other = partner + token * a.partner_stride;
    Real* dots = static_cast<Real*>(a.dots) + token * a.top_k;
    for (int64_t k = 0; k < a.top_k; ++k) {
      dots[k] = slots.row[k] < 0 ? Real(0) : dot(slots.at(k), other, a.hidden_size);
    }
  }
};

template <class Element>
bool combine(const CombineArguments& a, int64_t begin, int64_t end) {
  const Tokens<Element> tokens{a};
  bool sound = true;
  if (begin == end) return sound;
  Slots<Element> slots = tokens.slots_of(begin);
  bool inside = tokens.in_range(slots);
  for (int64_t token = begin; token < end; ++token) {
    const Slots<Element> next = tokens.slots_of(token + 1 < end ? token + 1 : token);
    const bool next_inside = tokens.in_range(next);
    if (inside) {
      tokens.write(token, slots, next_inside ? next : slots);
    } else {
      sound = false;
    }
    slots = next;
    inside = next_inside;
  }
  return sound;
}

} // namespace

bool combine_rows(const CombineArguments& arguments, int64_t begin, int64_t end) {
  bool sound = true;
  with_element(arguments.element, [&](auto zero) { sound = combine<decltype(zero)>(arguments, begin, end); });
  return sound;
}

} // namespace moegate::MOEGATE_ISA
