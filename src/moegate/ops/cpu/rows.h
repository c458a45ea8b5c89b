// Loops over the elements of one row, and dot products whose order of additions depends on the row's length alone.
#pragma once

#include "cpu/element.h"
#include "cpu/lanes.h"

namespace moegate::MOEGATE_ISA {

template <int kIndex>
struct Part {
  static constexpr int index = kIndex;
};

constexpr int64_t kBlock = 4 * kLanes;

template <class Element, class Lanes>
inline void load_up_to(const Element* from, int64_t count, Lanes& out) {
  count == kLanes ? load(from, out) : load_part(from, count, out);
}

template <class Element, class Lanes>
inline void store_up_to(const Lanes& values, Element* to, int64_t count) {
  count == kLanes ? store(values, to) : store_part(values, to, count);
}

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

// Four running sums of sixteen lanes each, so that additions do not wait for each other.
template <class Lanes, class Real>
struct Dot {
  Lanes part[4];

  Dot() {
    for (Lanes& lanes : part) spread(Real(0), lanes);
  }
  Real value() const { return sum<Real>((part[0] + part[1]) + (part[2] + part[3])); }
};

template <class Element>
inline typename Wide<Element>::Real dot(const Element* left, const Element* right, int64_t size) {
  using Lanes = typename Wide<Element>::Lanes;
  Dot<Lanes, typename Wide<Element>::Real> sums;
  each_sixteen(size, [&](auto part, int64_t first, int64_t count) __attribute__((always_inline)) {
    Lanes a, b;
    load_up_to(left + first, count, a);
    load_up_to(right + first, count, b);
    sums.part[part.index] = sums.part[part.index] + a * b;
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
    case moegate::Element::float16: return run(Float16{});
  }
}

} // namespace moegate::MOEGATE_ISA
