#include "permute/cpu_kernel.h"

#include "cpu/rows.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The first lines of a row that is read soon; the processor finds the others by itself.
inline void prefetch(const char* row) {
  for (int64_t line = 0; line < 4; ++line) __builtin_prefetch(row + 64 * line);
}

inline void copy(const char* from, char* to, int64_t bytes) {
  // Whole lines by hand: for rows of a few KB the library's copy starts slower.
  int64_t done = 0;
  for (; done + 256 <= bytes; done += 256) {
    char lines[256];
    std::memcpy(lines, from + done, 256);
    std::memcpy(to + done, lines, 256);
  }
  std::memcpy(to + done, from + done, bytes - done);
}

template <class Element>
inline void scale(const Element* from, typename Wide<Element>::Real weight, Element* to, int64_t size) {
  using Lanes = typename Wide<Element>::Lanes;
  Lanes factor;
  spread(weight, factor);
  each_sixteen(size, [&](auto, int64_t first, int64_t count) __attribute__((always_inline)) {
    Lanes values;
    load_up_to(from + first, count, values);
    store_up_to(values * factor, to + first, count);
  });
}

// Scales, and multiplies with the partner on the way.
template <class Element>
inline typename Wide<Element>::Real scale_and_dot(
    const Element* from, typename Wide<Element>::Real weight, Element* to, const Element* partner, int64_t size) {
  using Lanes = typename Wide<Element>::Lanes;
  Dot<Lanes, typename Wide<Element>::Real> sums;
  Lanes factor;
  spread(weight, factor);
  each_sixteen(size, [&](auto part, int64_t first, int64_t count) __attribute__((always_inline)) {
    Lanes values, others;
    load_up_to(from + first, count, values);
    load_up_to(partner + first, count, others);
    store_up_to(values * factor, to + first, count);
    sums.part[part.index] = sums.part[part.index] + values * others;
  });
  return sums.value();
}

template <class Element>
bool permute(const PermuteArguments& a, int64_t begin, int64_t end) {
  using Real = typename Wide<Element>::Real;
  const Element* hidden = static_cast<const Element*>(a.hidden);
  const Element* partner = static_cast<const Element*>(a.partner);
  const Real* weights = static_cast<const Real*>(a.weights);
  bool sound = true;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t slot = a.slot[row];
    Element* to = static_cast<Element*>(a.rows) + row * a.hidden_size;
    if (slot < 0 || slot >= a.num_slots) {
      sound = sound && slot == -1;
      if (slot == -1) std::memset(static_cast<void*>(to), 0, a.hidden_size * sizeof(Element));
      continue;
    }
    const Element* from = hidden + slot / a.top_k * a.hidden_stride;
    if (row + 1 < end) {
      const int64_t next = a.slot[row + 1];
      if (next >= 0 && next < a.num_slots) {
        prefetch(reinterpret_cast<const char*>(hidden + next / a.top_k * a.hidden_stride));
      }
    }
    if (a.dots != nullptr) {
      static_cast<Real*>(a.dots)[slot] =
          scale_and_dot(from, weights[slot], to, partner + row * a.partner_stride, a.hidden_size);
    } else if (weights != nullptr) {
      scale(from, weights[slot], to, a.hidden_size);
    } else {
      copy(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), a.hidden_size * sizeof(Element));
    }
  }
  return sound;
}

} // namespace

bool permute_rows(const PermuteArguments& arguments, int64_t begin, int64_t end) {
  bool sound = true;
  with_element(arguments.element, [&](auto zero) { sound = permute<decltype(zero)>(arguments, begin, end); });
  return sound;
}

} // namespace moegate::MOEGATE_ISA
