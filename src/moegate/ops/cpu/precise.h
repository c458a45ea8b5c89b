// exp and log in double precision, good to 2^-32: enough for results that are rounded to float32 at the end.
#pragma once

#include "cpu/vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr double kLn2 = 0.693147180559945309;

// exp(x) for x <= 0 or NaN; 0 below -708.
inline Doubles precise_exp(Doubles x) {
  const Doubles lowest = doubles(-708.0);
  const HalfMask vanishes = less(x, lowest);
  // Adding this number rounds to whole numbers, and leaves n + 1023 in the lowest bits.
  const Doubles rounding = doubles(0x1.8p52 + 1023.0);
  x = maximum(lowest, x);
  const Doubles shifted = x * doubles(1.44269504088896341) + rounding;
  const Doubles r = x - (shifted - rounding) * doubles(kLn2);
  // exp(r) = 1 + r + r² · P(r) for |r| <= ln(2)/2: interpolation in Chebyshev's points, relative error 2.2e-10.
  Doubles polynomial = doubles(0.0001989099088725496);
  polynomial = polynomial * r + doubles(0.0013933649994777356);
  polynomial = polynomial * r + doubles(0.008333310925348666);
  polynomial = polynomial * r + doubles(0.041666464925306);
  polynomial = polynomial * r + doubles(0.16666666681623915);
  polynomial = polynomial * r + doubles(0.5000000013465804);
  const Doubles mantissa = (polynomial * (r * r) + r) + doubles(1.0);
  return select(vanishes, doubles(0.0), mantissa * power_of_two_in_low_bits(shifted));
}

// Q of log(1 + u) = 2 s · Q(s²) with s = u / (2 + u), for 0 <= u <= 1: relative error 3e-12.
template <class Number, class Constant>
inline Number log1p_quotient(Number square, Constant constant) {
  Number polynomial = constant(0.10930678420980167);
  polynomial = polynomial * square + constant(0.08561148324845945);
  polynomial = polynomial * square + constant(0.11152577264874158);
  polynomial = polynomial * square + constant(0.1428407217960766);
  polynomial = polynomial * square + constant(0.20000030726676882);
  polynomial = polynomial * square + constant(0.33333333118828073);
  return polynomial * square + constant(1.0000000000024345);
}

// log(1 + u) for 0 <= u <= 1 or NaN.
inline Doubles precise_log1p(Doubles u) {
  const Doubles s = u / (doubles(2.0) + u);
  return (doubles(2.0) * s) * log1p_quotient(s * s, [](double value) { return doubles(value); });
}

// log(x) for finite x >= 1 or NaN.
inline double precise_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const double exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
  double mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  const double u = mantissa - 1.0;
  const double s = u / (2.0 + u);
  const double result = exponent * kLn2 + (2.0 * s) * log1p_quotient(s * s, [](double value) { return value; });
  return x == x ? result : x;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
