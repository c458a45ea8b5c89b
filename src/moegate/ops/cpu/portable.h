// The scores of moegate.ops.portable, bit for bit: the same single roundings in the same order. V is Floats or several.
#pragma once

#include "cpu/several.h"

namespace moegate::MOEGATE_ISA {
namespace {

// exp(x) for x <= 0 or NaN.
template <class V>
MOEGATE_INLINE V portable_exp(const V& x) {
  const Floats rounding = floats(0x1.8p23f); // adding and taking it away rounds to whole numbers, ties to even
  const V bounded = maximum(floats(-104.0f), x);
  const V n = (bounded * floats(static_cast<float>(1.44269504088896341)) + rounding) - rounding;
  const V r = (bounded - n * floats(0.693359375f)) - n * floats(static_cast<float>(-2.12194440e-4));
  V polynomial = floats(static_cast<float>(1.9875691500e-4)) * r + floats(static_cast<float>(1.3981999507e-3));
  polynomial = polynomial * r + floats(static_cast<float>(8.3334519073e-3));
  polynomial = polynomial * r + floats(static_cast<float>(4.1665795894e-2));
  polynomial = polynomial * r + floats(static_cast<float>(1.6666665459e-1));
  polynomial = polynomial * r + floats(static_cast<float>(5.0000001201e-1));
  return times_power_of_two((polynomial * (r * r) + r) + floats(1.0f), n);
}

// log(1 + u) for 0 <= u <= 1 or NaN.
template <class V>
MOEGATE_INLINE V portable_log1p(const V& u) {
  const V s = u / (floats(2.0f) + u);
  const V square = s * s;
  V polynomial = floats(static_cast<float>(0.14078889156761287)) * square;
  polynomial = polynomial + floats(static_cast<float>(0.13982578878397325));
  polynomial = polynomial * square + floats(static_cast<float>(0.20012297614909472));
  polynomial = polynomial * square + floats(static_cast<float>(0.3333316082070072));
  polynomial = polynomial * square + floats(static_cast<float>(1.000000003840879));
  return (floats(2.0f) * s) * polynomial;
}

template <class V>
MOEGATE_INLINE V portable_sigmoid(const V& z) {
  const Floats one = floats(1.0f);
  const V small = portable_exp(negative_magnitude(z));
  return select(at_least(z, floats(0.0f)), one, small) / (one + small);
}

template <class V>
MOEGATE_INLINE V portable_sqrt_softplus(const V& z) {
  const auto tail = less(z, floats(-40.0f));
  // One exponential serves the tail, exp(z / 2), and the body, exp(-|z|).
  const V power = portable_exp(select(tail, z * floats(0.5f), negative_magnitude(z)));
  const V body = square_root(maximum(floats(0.0f), z) + portable_log1p(power));
  return select(tail, power, body);
}

// A float in [0, 1] as a multiple of 2^-36: sums of up to 65,536 of them are exact, so their order does not matter.
MOEGATE_INLINE Doubles on_grid(Doubles x) {
  const Doubles rounding = doubles(0x1.8p16);
  return (x + rounding) - rounding;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
