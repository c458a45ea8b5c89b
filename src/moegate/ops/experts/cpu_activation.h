// The activations of the experts, in float32.
#pragma once

#include "experts/cpu_kernel.h"
#include "experts/cpu_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

static inline Vector choose(Integers mask, Vector yes, Vector no) { return mask ? yes : no; }

static inline Vector power_of_two(Integers exponent) { return (Vector)((exponent + 127) << 23); }

template <int Count>
static inline Vector horner(const float (&coefficients)[Count], Vector x) {
  Vector result = broadcast(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < Count; ++i) result = multiply_add(result, x, broadcast(coefficients[i]));
  return result;
}

// exp(r) = 1 + r + r² · polynomial, for |r| <= ln(2) / 2 (Cephes).
constexpr float kExponential[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
// Phi(-a) = exp(-a²/2) · t · polynomial(t) with t = 1 / (1 + a · 5/16): a fit of relative error 1.5e-8 up to a = 30.
constexpr float kNormalTail[] = {-0.02084404043853283f, 0.10113189369440079f, -0.17339132726192474f,
                                 0.10323677957057953f,  -0.025832386687397957f, 0.06755109131336212f,
                                 0.08613505959510803f,  0.11268263310194016f,   0.12466069310903549f,
                                 0.12466960400342941f};

// Within about 1 ulp. NaN stays NaN.
static inline Vector exponential(Vector x) {
  const Vector clamped = choose(x > 89.0f, broadcast(89.0f), choose(x < -104.0f, broadcast(-104.0f), x));
  const Vector shift = broadcast(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  const Vector number = multiply_add(clamped, broadcast(1.44269504088896341f), shift) - shift;
  const Vector high = multiply_add(number, broadcast(-0.693359375f), clamped);
  const Vector rest = multiply_add(number, broadcast(2.12194440e-4f), high);
  const Vector polynomial = horner(kExponential, rest);
  const Vector mantissa = multiply_add(polynomial, rest * rest, rest) + 1.0f;
  const Vector safe = choose(number == number, number, Vector{});
  const Integers exponent = __builtin_convertvector(safe, Integers);
  const Integers half = exponent >> 1; // two factors: the result may lie below or above the normal range
  return mantissa * power_of_two(half) * power_of_two(exponent - half);
}

static inline Vector silu(Vector x) { return x / (1.0f + exponential(-x)); }

// x · Phi(x), from the tail of the normal distribution: nothing cancels for negative x.
static inline Vector gelu(Vector x) {
  const Vector distance = choose(x < 0.0f, -x, x);
  const Vector t = 1.0f / multiply_add(distance, broadcast(0.3125f), broadcast(1.0f));
  const Vector tail = exponential(distance * distance * -0.5f) * (horner(kNormalTail, t) * t);
  return x * choose(x < 0.0f, tail, 1.0f - tail);
}

static inline Vector relu(Vector x) { return choose(x < 0.0f, Vector{}, x); }

static inline Vector activate(Activation activation, Vector x) {
  switch (activation) {
    case Activation::swiglu:
    case Activation::silu:
      return silu(x);
    case Activation::geglu:
    case Activation::gelu:
      return gelu(x);
    case Activation::relu:
      return relu(x);
    case Activation::relu2:
      return relu(x) * relu(x);
  }
  return x;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
