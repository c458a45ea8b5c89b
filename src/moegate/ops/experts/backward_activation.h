// Activations and their derivatives, float32, without branches, so that the compiler makes vectors of the loops.
#pragma once

#include "experts/cpu_kernel_backward.h"

#include <cstdint>
#include <cstring>

namespace moegate::MOEGATE_ISA {
namespace {

// A value and its derivative at the same place.
struct Slope {
  float value;
  float derivative;
};

// e^x to about one unit in the last place: x = n log 2 + r with |r| <= log(2) / 2, and a polynomial for e^r.
inline float exponential(float x) {
  constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * r + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  sum = sum * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3F800000u; // the integer moves into the exponent
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float result = sum * power;
  return x < -87.0f ? 0.0f : x > 88.0f ? __builtin_inff() : result;
}

inline Slope silu(float x) {
  const float sigmoid = 1.0f / (1.0f + exponential(-x));
  return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
}

// erfc(z) = e^(-z^2) t (c0 + c1 t + ... + c8 t^8) with t = 1 / (1 + z / 2), z >= 0; a least-squares fit whose error
// is 2e-8 in exact arithmetic and 1e-7 in float32.
inline Slope gelu(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float bell = exponential(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.35355339f * magnitude);
  float sum = -0.05425826832652092f;
  sum = sum * t + 0.26274800300598145f;
  sum = sum * t - 0.4458252489566803f;
  sum = sum * t + 0.23561668395996094f;
  sum = sum * t - 0.001110590761527419f;
  sum = sum * t + 0.1936139613389969f;
  sum = sum * t + 0.24493272602558136f;
  sum = sum * t + 0.2821893095970154f;
  sum = sum * t + 0.28209343552589417f;
  const float tail = 0.5f * bell * t * sum;
  const float below = x < 0.0f ? tail : 1.0f - tail;
  return {x * below, below + x * 0.39894228f * bell};
}

// Zero up to zero, as in PyTorch; NaN stays NaN.
inline Slope relu(float x) { return {x <= 0.0f ? 0.0f : x, x <= 0.0f ? 0.0f : 1.0f}; }

inline Slope relu_squared(float x) {
  const float positive = x <= 0.0f ? 0.0f : x;
  return {positive * positive, 2.0f * positive};
}

// inner = act(gate) * up
template <class Function>
inline void gated_backward(
    Function function, const float* gate, const float* up, float* grad, float* inner, float* grad_gate, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Slope slope = function(gate[i]);
    const float grad_inner = grad[i];
    inner[i] = slope.value * up[i];
    grad_gate[i] = grad_inner * up[i] * slope.derivative;
    grad[i] = grad_inner * slope.value;
  }
}

// inner = act(pre)
template <class Function>
inline void plain_backward(Function function, const float* pre, float* grad, float* inner, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Slope slope = function(pre[i]);
    inner[i] = slope.value;
    grad[i] *= slope.derivative;
  }
}

// From the gradient of the inner values, in `grad`: the inner values once more, and the gradients of what went into
// the activation. The gradient of `up` (gated) or of `pre` (plain) takes the place of `grad`.
inline void activation_backward(
    Activation activation, const float* pre, const float* up, float* grad, float* inner, float* grad_gate,
    int64_t count) {
  const auto silu_at = [](float x) { return silu(x); };
  const auto gelu_at = [](float x) { return gelu(x); };
  switch (activation) {
    case Activation::swiglu: return gated_backward(silu_at, pre, up, grad, inner, grad_gate, count);
    case Activation::geglu: return gated_backward(gelu_at, pre, up, grad, inner, grad_gate, count);
    case Activation::gelu: return plain_backward(gelu_at, pre, grad, inner, count);
    case Activation::silu: return plain_backward(silu_at, pre, grad, inner, count);
    case Activation::relu: return plain_backward([](float x) { return relu(x); }, pre, grad, inner, count);
    case Activation::relu2: return plain_backward([](float x) { return relu_squared(x); }, pre, grad, inner, count);
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
