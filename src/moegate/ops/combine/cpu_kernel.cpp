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
template <int kWidth, bool kWeighted, class Element>
inline void add_block(
    const Slots<Element>& slots, const Slots<Element>& next, int64_t first, int64_t count, Element* to) {
  using Lanes = typename Wide<Element>::Lanes;
  using Real = typename Wide<Element>::Real;
  Lanes sums[kWidth];
  for (int i = 0; i < kWidth; ++i) spread(Real(0), sums[i]);
  for (int64_t k = 0; k < slots.top_k; ++k) {
    if (slots.row[k] < 0) continue;
    const Element* from = slots.at(k) + first;
    if constexpr (kWidth == 4) prefetch(next.at(k) + first, kBlock);
    Lanes factor;
    if constexpr (kWeighted) spread(slots.weights[k], factor);
    for (int i = 0; i < kWidth; ++i) {
      Lanes values;
      load_up_to(from + i * kLanes, count, values);
      if constexpr (kWeighted) values = values * factor;
      sums[i] = sums[i] + values;
    }
  }
  for (int i = 0; i < kWidth; ++i) store_up_to(sums[i], to + first + i * kLanes, count);
}

template <bool kWeighted, class Element>
inline void add_token(const Slots<Element>& slots, const Slots<Element>& next, int64_t size, Element* to) {
  int64_t first = 0;
  for (; first + kBlock <= size; first += kBlock) add_block<4, kWeighted>(slots, next, first, kLanes, to);
  for (; first + kLanes <= size; first += kLanes) add_block<1, kWeighted>(slots, next, first, kLanes, to);
  if (first < size) add_block<1, kWeighted>(slots, next, first, size - first, to);
}

template <class Element>
bool in_range(const Slots<Element>& slots, int64_t num_rows) {
  bool inside = true;
  for (int64_t k = 0; k < slots.top_k; ++k) inside = inside && slots.row[k] >= -1 && slots.row[k] < num_rows;
  return inside;
}

template <class Element>
bool combine(const CombineArguments& a, int64_t begin, int64_t end) {
  using Real = typename Wide<Element>::Real;
  const Element* partner = static_cast<const Element*>(a.partner);
  const Real* weights = static_cast<const Real*>(a.weights);
  bool sound = true;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = token * a.top_k;
    const Slots<Element> slots{
        static_cast<const Element*>(a.rows), a.row_stride, a.inverse + slot,
        weights == nullptr ? nullptr : weights + slot, a.top_k};
    if (!in_range(slots, a.num_rows)) {
      sound = false;
      continue;
    }
    if (a.dots != nullptr) {
      // First, so that the rows are in the cache when they are added.
      const Element* other = partner + token * a.partner_stride;
      Real* dots = static_cast<Real*>(a.dots) + slot;
      for (int64_t k = 0; k < a.top_k; ++k) {
        dots[k] = slots.row[k] < 0 ? Real(0) : dot(slots.at(k), other, a.hidden_size);
      }
    }
    if (a.out == nullptr) continue;
    Element* to = static_cast<Element*>(a.out) + token * a.hidden_size;
    Slots<Element> next = slots;
    if (token + 1 < end) next.row += a.top_k;
    weights == nullptr ? add_token<false>(slots, next, a.hidden_size, to)
                       : add_token<true>(slots, next, a.hidden_size, to);
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
