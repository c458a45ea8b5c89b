// Rows of elements, sixteen at a time: products and sums with the same bits on every instruction set, and dot products
// whose order of additions depends on the row's length alone.
#pragma once

#include "cpu/element.h"
#include "cpu/vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

// --- sixteen elements, in the type that they are computed in ----------------------------------------------------------

struct SixteenDoubles {
  Doubles low, high;
};

inline SixteenDoubles operator+(SixteenDoubles a, SixteenDoubles b) { return {a.low + b.low, a.high + b.high}; }
inline SixteenDoubles operator*(SixteenDoubles a, SixteenDoubles b) { return {a.low * b.low, a.high * b.high}; }

template <class Element>
struct Wide {
  using Real = float;
  using Lanes = Floats;
};
template <>
struct Wide<double> {
  using Real = double;
  using Lanes = SixteenDoubles;
};

inline Floats spread(float value) { return floats(value); }
inline SixteenDoubles spread(double value) { return {doubles(value), doubles(value)}; }

// Lanes from `count` elements, at most sixteen; the lanes behind them are 0.
template <class Element>
inline Floats load_lanes(const Element* from, int64_t count) {
  return count == kLanes ? load_as_floats(from) : load_as_floats(from, count);
}
inline SixteenDoubles load_lanes(const double* from, int64_t count) {
  if (count == kLanes) return {load(from), load(from + kHalfLanes)};
  double block[kLanes] = {};
  std::memcpy(block, from, count * sizeof(double));
  return {load(block), load(block + kHalfLanes)};
}

template <class Element>
inline void store_lanes(Element* to, Floats values, int64_t count) {
  count == kLanes ? store_as_elements(to, values) : store_as_elements(to, values, count);
}
inline void store_lanes(double* to, SixteenDoubles values, int64_t count) {
  double block[kLanes];
  double* whole = count == kLanes ? to : block;
  store(whole, values.low);
  store(whole + kHalfLanes, values.high);
  if (count != kLanes) std::memcpy(to, block, count * sizeof(double));
}

// --- a row --------------------------------------------------------------------------------------------------------------

constexpr int64_t kBlock = 4 * kLanes;

// Which of a block's four parts is visited, known to the compiler.
template <int kIndex>
struct Part {
  static constexpr int index = kIndex;
};

template <class Visit, int kIndex>
[[gnu::always_inline]] inline void visit_rest(int64_t first, int64_t size, const Visit& visit, Part<kIndex> part) {
  const int64_t left = size - first;
  if (left <= 0) return;
  visit(part, first, left < kLanes ? left : kLanes);
  if constexpr (kIndex < 3) visit_rest(first + kLanes, size, visit, Part<kIndex + 1>{});
}

// visit(part, first, count) for the elements of a row, sixteen at a time and fewer at the end; `part` counts 0 to 3.
template <class Visit>
[[gnu::always_inline]] inline void each_sixteen(int64_t size, const Visit& visit) {
  int64_t first = 0;
  for (; first + kBlock <= size; first += kBlock) {
    visit(Part<0>{}, first, kLanes);
    visit(Part<1>{}, first + kLanes, kLanes);
    visit(Part<2>{}, first + 2 * kLanes, kLanes);
    visit(Part<3>{}, first + 3 * kLanes, kLanes);
  }
  visit_rest(first, size, visit, Part<0>{});
}

// The sum of products as four running sums of sixteen lanes each, so that additions do not wait for each other.
template <class Element>
struct Dot {
  using Real = typename Wide<Element>::Real;
  using Lanes = typename Wide<Element>::Lanes;

  Lanes part[4] = {spread(Real(0)), spread(Real(0)), spread(Real(0)), spread(Real(0))};

  Real value() const {
    Real lanes[kLanes];
    store_lanes(lanes, (part[0] + part[1]) + (part[2] + part[3]), kLanes);
    for (int64_t width = kLanes / 2; width > 0; width /= 2) {
      for (int64_t i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
    }
    return lanes[0];
  }
};

template <class Element>
inline typename Wide<Element>::Real dot(const Element* left, const Element* right, int64_t size) {
  Dot<Element> sums;
  each_sixteen(size, [&](auto part, int64_t first, int64_t count) __attribute__((always_inline)) {
    sums.part[part.index] =
        sums.part[part.index] + load_lanes(left + first, count) * load_lanes(right + first, count);
  });
  return sums.value();
}

// run(Element{}) with the type that `element` names.
template <class Run>
inline void with_element(moegate::Element element, const Run& run) {
  switch (element) {
    case moegate::Element::float32: return run(float{});
    case moegate::Element::float64: return run(double{});
    case moegate::Element::bfloat16: return run(BFloat16{});
    case moegate::Element::float16: return run(Half{});
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
