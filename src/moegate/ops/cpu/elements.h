// The element types of logits, and how a single one becomes a float and back.
#pragma once

#include <cstdint>
#include <cstring>

#if !MOEGATE_ISA_scalar
#include "cpu/intrinsics.h"
#endif

// For functions and lambdas that must not be called: a vector that passes through memory costs more than a step. The
// sanitizers put so many checks into every copy that the build would take six times as long.
#ifdef MOEGATE_SANITIZED
#define MOEGATE_INLINED
#else
#define MOEGATE_INLINED __attribute__((always_inline))
#endif
#define MOEGATE_INLINE inline MOEGATE_INLINED

namespace moegate::MOEGATE_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

MOEGATE_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

MOEGATE_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

MOEGATE_INLINE float to_float(float value) { return value; }

MOEGATE_INLINE float to_float(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

MOEGATE_INLINE void from_float(float value, float& out) { out = value; }

MOEGATE_INLINE void from_float(float value, BFloat16& out) {
  const uint32_t bits = bits_of(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if MOEGATE_ISA_scalar

MOEGATE_INLINE float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // A half's exponent is 112 below a float's; the product also makes subnormal halves normal.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

MOEGATE_INLINE void from_float(float value, Half& out) {
  const uint32_t sign = (bits_of(value) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) { // rounds to more than the largest half
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) { // a subnormal half: adding 2^-1 leaves its bits at the end of the sum
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

#else

MOEGATE_INLINE float to_float(Half value) { return _cvtsh_ss(value.bits); }

MOEGATE_INLINE void from_float(float value, Half& out) {
  out.bits = static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
}

#endif

} // namespace
} // namespace moegate::MOEGATE_ISA
