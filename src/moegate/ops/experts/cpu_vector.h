// A vector of float32 for the instruction set that this file is compiled for, and the element types of a product.
#pragma once

#include <cstdint>
#include <cstring>

#include "experts/cpu_kernel.h"

#if defined(__x86_64__)
// Where an intrinsic leaves a register undefined on purpose, GCC 12 warns in its own header.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace moegate::MOEGATE_ISA {
namespace {

#if defined(MOEGATE_ISA_avx512) || defined(MOEGATE_ISA_avx512_bf16)
constexpr int64_t kLanes = 16;
#elif defined(MOEGATE_ISA_avx2)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

static inline Vector broadcast(float value) { return value - Vector{}; }

static inline Vector load_vector(const float* from) {
  Vector result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

static inline void store_vector(float* to, Vector values) { std::memcpy(to, &values, sizeof(values)); }

static inline Vector multiply_add(Vector left, Vector right, Vector sum) {
#if defined(MOEGATE_ISA_avx512) || defined(MOEGATE_ISA_avx512_bf16)
  return _mm512_fmadd_ps(left, right, sum);
#elif defined(MOEGATE_ISA_avx2)
  return _mm256_fmadd_ps(left, right, sum);
#else
  return left * right + sum;
#endif
}

// Bits of the float32 that a bfloat16 stands for, rounded to nearest even; NaN stays NaN.
static inline Halves to_bfloat16(Vector values) {
  const Words bits = (Words)values;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector((values == values) ? rounded : quiet, Halves);
}

// What a register block multiplies: how many elements one step takes, and how they are held in registers.
// A block of kBlockRows rows and 4 columns fills the registers.
struct Float32 {
  using Element = float;
  using Operand = Vector;
  static constexpr int64_t kStep = kLanes;
  static constexpr int64_t kChunk = kChunkBytes / 4;
  static constexpr int kBlockRows = kLanes == 16 ? 4 : kLanes == 8 ? 3 : 2;

  static inline Operand load(const Element* from) { return load_vector(from); }

  static inline Operand load_part(const Element* from, int64_t count) {
#if defined(MOEGATE_ISA_avx512) || defined(MOEGATE_ISA_avx512_bf16)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
    float whole[kStep] = {};
    for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
    return load_vector(whole);
#endif
  }

  // Keeps an operand in its register: folded into each multiplication, it would be loaded once for each of them.
  static inline void pin(Operand& operand) {
#if defined(__AVX__)
    asm("" : "+v"(operand));
#endif
  }

  static inline Vector multiply_add(Operand left, Operand right, Vector sum) {
    return MOEGATE_ISA::multiply_add(left, right, sum);
  }

  static inline void store(Element* to, Vector values, int64_t count) {
    std::memcpy(to, &values, count == kLanes ? sizeof(values) : static_cast<size_t>(count) * sizeof(Element));
  }
};

struct BFloat16 {
  using Element = uint16_t;
  static constexpr int64_t kStep = 2 * kLanes;
  static constexpr int64_t kChunk = kChunkBytes / 2;
  static constexpr int kBlockRows = kLanes == 16 ? 4 : 2;

#if defined(MOEGATE_ISA_avx512_bf16)
  using Operand = __m512bh;

  static inline Operand load(const Element* from) { return (__m512bh)_mm512_loadu_si512(from); }

  static inline Vector multiply_add(Operand left, Operand right, Vector sum) {
    return _mm512_dpbf16_ps(sum, left, right);
  }

  static inline Operand load_part(const Element* from, int64_t count) {
    return (__m512bh)_mm512_maskz_loadu_epi16((1u << count) - 1, from);
  }
#else
  // Pairs of bfloat16, widened to two vectors of float32.
  struct Operand {
    Vector even, odd;
  };

  static inline Operand load(const Element* from) {
    Words pairs;
    std::memcpy(&pairs, from, sizeof(pairs));
    return {(Vector)(pairs << 16), (Vector)(pairs & 0xffff0000u)};
  }

  static inline Vector multiply_add(Operand left, Operand right, Vector sum) {
    sum = MOEGATE_ISA::multiply_add(left.even, right.even, sum);
    return MOEGATE_ISA::multiply_add(left.odd, right.odd, sum);
  }

  static inline Operand load_part(const Element* from, int64_t count) {
    Element whole[kStep] = {};
    for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
    return load(whole);
  }
#endif

  static inline void pin(Operand&) {}

  static inline void store(Element* to, Vector values, int64_t count) {
    const Halves halves = to_bfloat16(values);
    std::memcpy(to, &halves, count == kLanes ? sizeof(halves) : static_cast<size_t>(count) * sizeof(Element));
  }
};

} // namespace
} // namespace moegate::MOEGATE_ISA
