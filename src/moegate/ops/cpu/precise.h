// exp and log in double precision, good to 2^-29: enough for results that are rounded to float32 at the end.
#pragma once

#include "cpu/several.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr double kLn2 = 0.693147180559945309;

// The bits of 2^(j/16), less j in the place where n = 16 e + j, shifted by 48, adds e to the exponent and j below it.
alignas(64) constexpr uint64_t kPowers[16] = {
    0x3ff0000000000000, 0x3fefb5586cf9890f, 0x3fef72b83c7d517b, 0x3fef387a6e756238,
    0x3fef06fe0a31b715, 0x3feedea64c123422, 0x3feebfdad5362a27, 0x3feeab07dd485429,
    0x3feea09e667f3bcd, 0x3feea11473eb0187, 0x3feeace5422aa0db, 0x3feec49182a3f090,
    0x3feee89f995ad3ad, 0x3fef199bdd85529c, 0x3fef5818dcfba487, 0x3fefa4afa2a490da};

constexpr double kVanishing = -708.0; // exp of it is just no subnormal number: those are slow

// exp(x) for x <= 0 or NaN, but never less than exp(kVanishing). V is Doubles or several.
template <class V>
MOEGATE_INLINE V precise_exp_above_zero(const V& x) {
  const Doubles rounding = doubles(0x1.8p52); // adding it rounds to whole numbers, and leaves them in the lowest bits
  const V bounded = maximum(doubles(kVanishing), x);
  const V n = bounded * doubles(16.0 / kLn2) + rounding;
  const V r = bounded - (n - rounding) * doubles(kLn2 / 16.0);
  // exp(r) - 1 for |r| <= ln(2)/32: a minimax polynomial, error 5.2e-12.
  const V cubic = doubles(0.0416676581453464) * r + doubles(0.16667006482098576);
  const V polynomial = cubic * r + doubles(0.4999999998405607);
  const V grown = polynomial * (r * r) + r;
  const V power = power_of_sixteenths(n, kPowers);
  return (grown + doubles(1.0)) * power;
}

// exp(x) for x <= 0 or NaN; 0 below kVanishing.
template <class V>
MOEGATE_INLINE V precise_exp(const V& x) {
  return select(less(x, doubles(kVanishing)), doubles(0.0), precise_exp_above_zero(x));
}

// Q of log(1 + u) = 2 s · Q(s²) with s = u / (2 + u), for 0 <= u <= 1: relative error 3e-12.
template <class Number, class Constant>
MOEGATE_INLINE Number log1p_quotient(const Number& square, Constant constant) {
  Number polynomial = square * constant(0.10930678420980167) + constant(0.08561148324845945);
  polynomial = polynomial * square + constant(0.11152577264874158);
  polynomial = polynomial * square + constant(0.1428407217960766);
  polynomial = polynomial * square + constant(0.20000030726676882);
  polynomial = polynomial * square + constant(0.33333333118828073);
  return polynomial * square + constant(1.0000000000024345);
}

// log(1 + u) for 0 <= u <= 1 or NaN.
template <class V>
MOEGATE_INLINE V precise_log1p(const V& u) {
  const V s = u / (doubles(2.0) + u);
  return (doubles(2.0) * s) * log1p_quotient(s * s, [](double value) MOEGATE_INLINED { return doubles(value); });
}

// log(x) for finite x >= 1 or NaN.
MOEGATE_INLINE double precise_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const double exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
  double mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  const double u = mantissa - 1.0;
  const double s = u / (2.0 + u);
  const double quotient = log1p_quotient(s * s, [](double value) MOEGATE_INLINED { return value; });
  const double result = exponent * kLn2 + (2.0 * s) * quotient;
  return x == x ? result : x;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
