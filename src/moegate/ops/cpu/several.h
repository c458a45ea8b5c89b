// Several vectors that take every step together. The steps of one of them wait for each other, so that a processor
// which looks only some hundred instructions ahead would idle; those of the others fill the gaps.
#pragma once

#include <utility>

#include "cpu/vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

// As many as the registers have room for, of Floats and of Floats that become twice as many Doubles.
#if MOEGATE_ISA_avx512 || MOEGATE_ISA_avx512_bf16
constexpr int64_t kTogether = 4, kTogetherWide = 2;
#else
constexpr int64_t kTogether = 1, kTogetherWide = 1;
#endif

template <class V, int64_t n>
struct Several {
  V v[n];
};

template <class V>
inline constexpr bool is_several = false;
template <class V, int64_t n>
inline constexpr bool is_several<Several<V, n>> = true;

template <class V, int64_t n>
MOEGATE_INLINE V at(const Several<V, n>& a, int64_t i) {
  return a.v[i];
}
template <class V>
MOEGATE_INLINE V at(const V& a, int64_t) {
  return a;
}

// value(0), value(1), ... written out, since a loop would keep the vectors in memory.
template <int64_t n, class F>
MOEGATE_INLINE auto each_of(F&& value) {
  return [&]<int64_t... i>(std::integer_sequence<int64_t, i...>) MOEGATE_INLINED {
    return Several<decltype(value(int64_t{0})), n>{{value(i)...}};
  }(std::make_integer_sequence<int64_t, n>());
}

// A function of two vectors, of which either may be several.
#define MOEGATE_FOR_SEVERAL(function)                                                         \
  template <class V, int64_t n, class B>                                                      \
  MOEGATE_INLINE auto function(const Several<V, n>& a, const B& b) {                          \
    return each_of<n>([&](int64_t i) MOEGATE_INLINED { return function(a.v[i], at(b, i)); }); \
  }                                                                                           \
  template <class V, class W, int64_t n>                                                      \
    requires(!is_several<V>)                                                                  \
  MOEGATE_INLINE auto function(const V& a, const Several<W, n>& b) {                          \
    return each_of<n>([&](int64_t i) MOEGATE_INLINED { return function(a, b.v[i]); });        \
  }
MOEGATE_FOR_SEVERAL(operator+)
MOEGATE_FOR_SEVERAL(operator-)
MOEGATE_FOR_SEVERAL(operator*)
MOEGATE_FOR_SEVERAL(operator/)
MOEGATE_FOR_SEVERAL(maximum)
MOEGATE_FOR_SEVERAL(less)
MOEGATE_FOR_SEVERAL(at_least)
MOEGATE_FOR_SEVERAL(times_power_of_two)
#undef MOEGATE_FOR_SEVERAL

template <class V, int64_t n>
MOEGATE_INLINE auto negative_magnitude(const Several<V, n>& a) {
  return each_of<n>([&](int64_t i) MOEGATE_INLINED { return negative_magnitude(a.v[i]); });
}
template <class V, int64_t n>
MOEGATE_INLINE auto square_root(const Several<V, n>& a) {
  return each_of<n>([&](int64_t i) MOEGATE_INLINED { return square_root(a.v[i]); });
}
template <int64_t n>
MOEGATE_INLINE auto power_of_sixteenths(const Several<Doubles, n>& a, const uint64_t* powers) {
  return each_of<n>([&](int64_t i) MOEGATE_INLINED { return power_of_sixteenths(a.v[i], powers); });
}
template <class M, int64_t n, class A, class B>
MOEGATE_INLINE auto select(const Several<M, n>& mask, const A& a, const B& b) {
  return each_of<n>([&](int64_t i) MOEGATE_INLINED { return select(mask.v[i], at(a, i), at(b, i)); });
}

// Marks at least one lane if there is a NaN; two vectors take one comparison.
template <int64_t n>
MOEGATE_INLINE Mask any_nan(const Several<Floats, n>& a) {
  static_assert(n <= 4);
  const Mask found = either_is_nan(a.v[0], a.v[n / 2]);
  if constexpr (n < 4) return found;
  else return found | either_is_nan(a.v[1], a.v[3]);
}

// Each vector's lower half, then its upper one.
template <int64_t n>
MOEGATE_INLINE Several<Doubles, 2 * n> widened(const Several<Floats, n>& a) {
  return each_of<2 * n>([&](int64_t i) MOEGATE_INLINED {
    return i % 2 == 0 ? lower_half(a.v[i / 2]) : upper_half(a.v[i / 2]);
  });
}

} // namespace
} // namespace moegate::MOEGATE_ISA
