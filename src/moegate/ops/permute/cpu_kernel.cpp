#include "permute/cpu_kernel.h"

#include "cpu/rows.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The first lines of a row that is read soon; the processor finds the others by itself.
inline void prefetch(const void* row) {
  for (int64_t line = 0; line < 4; ++line) __builtin_prefetch(static_cast<const char*>(row) + 64 * line);
}

// A line at a time: for rows of a few KB the library's copy starts slower.
inline void copy(const char* from, char* to, int64_t bytes) {
  struct Line {
    char bytes[64];
  };
  int64_t done = 0;
  for (; done + 64 <= bytes; done += 64) {
    Line line;
    std::memcpy(&line, from + done, sizeof line);
    std::memcpy(to + done, &line, sizeof line);
  }
  if (done < bytes) std::memcpy(to + done, from + done, bytes - done);
}

template <class Element>
inline void scale(const Element* from, typename Wide<Element>::Real weight, Element* to, int64_t size) {
  const auto factor = spread(weight);
  each_sixteen(size, [&](auto, int64_t first, int64_t count) __attribute__((always_inline)) {
    store_lanes(to + first, load_lanes(from + first, count) * factor, count);
  });
}

// Scales, and multiplies with the partner on the way.
template <class Element>
inline typename Wide<Element>::Real scale_and_dot(
    const Element* from, typename Wide<Element>::Real weight, Element* to, const Element* partner, int64_t size) {
  const auto factor = spread(weight);
  Dot<Element> sums;
  each_sixteen(size, [&](auto part, int64_t first, int64_t count) __attribute__((always_inline)) {
    const auto values = load_lanes(from + first, count);
    const auto others = load_lanes(partner + first, count);
    store_lanes(to + first, values * factor, count);
    sums.part[part.index] = sums.part[part.index] + values * others;
  });
  return sums.value();
}

// Tokens and rows of one type.
template <class Element>
struct Rows {
  using Real = typename Wide<Element>::Real;

  const PermuteArguments& a;
  const Element* hidden = static_cast<const Element*>(a.hidden);
  const Element* partner = static_cast<const Element*>(a.partner);
  const Real* weights = static_cast<const Real*>(a.weights);

  bool has(int64_t slot) const { return slot >= 0 && slot < a.num_slots; }
  const Element* token_of(int64_t slot) const { return hidden + slot / a.top_k * a.hidden_stride; }
  Element* at(int64_t row) const { return static_cast<Element*>(a.rows) + row * a.hidden_size; }

  void write(int64_t row, int64_t slot) const {
    const Element* from = token_of(slot);
    Element* to = at(row);
    if (a.dots != nullptr) {
      static_cast<Real*>(a.dots)[slot] =
          scale_and_dot(from, weights[slot], to, partner + row * a.partner_stride, a.hidden_size);
    } else if (weights != nullptr) {
      scale(from, weights[slot], to, a.hidden_size);
    } else {
      copy(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), a.hidden_size * sizeof(Element));
    }
  }
};

template <class Element>
bool permute(const PermuteArguments& a, int64_t begin, int64_t end) {
  const Rows<Element> rows{a};
  bool sound = true;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t slot = a.slot[row];
    if (row + 1 < end && rows.has(a.slot[row + 1])) prefetch(rows.token_of(a.slot[row + 1]));
    if (rows.has(slot)) {
      rows.write(row, slot);
    } else {
      sound = sound && slot == -1;
      if (slot == -1 && a.hidden_size > 0) {
        std::memset(static_cast<void*>(rows.at(row)), 0, a.hidden_size * sizeof(Element));
      }
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
