// Included by cpu/vector.h: a vector is an array, for any processor; the compiler makes of it what it can.
#pragma once

#include <cmath>

namespace moegate::MOEGATE_ISA {
namespace {

template <class Number, int64_t lanes>
struct Vector {
  Number v[lanes];
};
using Floats = Vector<float, kLanes>;
using Ints = Vector<int32_t, kLanes>;
using Doubles = Vector<double, kHalfLanes>;
using Longs = Vector<int64_t, kHalfLanes>;
struct Mask {
  bool v[kLanes];
};
struct HalfMask {
  bool v[kHalfLanes];
};

template <int64_t lanes, class F>
MOEGATE_INLINE auto each_lane(F&& value_of_lane) {
  Vector<decltype(value_of_lane(int64_t{0})), lanes> result;
  for (int64_t i = 0; i < lanes; ++i) result.v[i] = value_of_lane(i);
  return result;
}
template <class F>
MOEGATE_INLINE Mask each_mask_lane(F&& holds) {
  Mask result;
  for (int64_t i = 0; i < kLanes; ++i) result.v[i] = holds(i);
  return result;
}
template <class F>
MOEGATE_INLINE HalfMask each_half_mask_lane(F&& holds) {
  HalfMask result;
  for (int64_t i = 0; i < kHalfLanes; ++i) result.v[i] = holds(i);
  return result;
}

MOEGATE_INLINE Floats load(const float* from) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return from[i]; });
}
MOEGATE_INLINE Ints load(const int32_t* from) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return from[i]; });
}
MOEGATE_INLINE Doubles load(const double* from) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return from[i]; });
}
MOEGATE_INLINE Longs load(const int64_t* from) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return from[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE void store(Number* to, const Vector<Number, lanes>& a) {
  for (int64_t i = 0; i < lanes; ++i) to[i] = a.v[i];
}

MOEGATE_INLINE Floats floats(float value) { return each_lane<kLanes>([&](int64_t) MOEGATE_INLINED { return value; }); }
MOEGATE_INLINE Ints ints(int32_t value) { return each_lane<kLanes>([&](int64_t) MOEGATE_INLINED { return value; }); }
MOEGATE_INLINE Doubles doubles(double value) {
  return each_lane<kHalfLanes>([&](int64_t) MOEGATE_INLINED { return value; });
}
MOEGATE_INLINE Longs longs(int64_t value) {
  return each_lane<kHalfLanes>([&](int64_t) MOEGATE_INLINED { return value; });
}
MOEGATE_INLINE Ints lane_numbers() {
  return each_lane<kLanes>([](int64_t i) MOEGATE_INLINED { return static_cast<int32_t>(i); });
}

MOEGATE_INLINE Mask first_lanes(int64_t count) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return i < count; });
}
MOEGATE_INLINE HalfMask first_half_lanes(int64_t count) {
  return each_half_mask_lane([&](int64_t i) MOEGATE_INLINED { return i < count; });
}
MOEGATE_INLINE Mask operator|(const Mask& a, const Mask& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] | b.v[i]; });
}
MOEGATE_INLINE Mask operator&(const Mask& a, const Mask& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] & b.v[i]; });
}
MOEGATE_INLINE Mask no_lanes() { return first_lanes(0); }
MOEGATE_INLINE int64_t count_lanes(const Mask& a) {
  int64_t count = 0;
  for (int64_t i = 0; i < kLanes; ++i) count += a.v[i];
  return count;
}
MOEGATE_INLINE bool any(const Mask& a) { return count_lanes(a) != 0; }

template <class Number, int64_t lanes>
MOEGATE_INLINE auto operator+(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] + b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto operator-(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] - b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto operator*(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] * b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto operator/(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] / b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto maximum(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto minimum(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto square_root(const Vector<Number, lanes>& a) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return std::sqrt(a.v[i]); });
}
template <class Number, int64_t lanes>
MOEGATE_INLINE auto negative_magnitude(const Vector<Number, lanes>& a) {
  return each_lane<lanes>([&](int64_t i) MOEGATE_INLINED { return std::copysign(a.v[i], Number{-1}); });
}
template <class Number>
MOEGATE_INLINE Number greatest(const Vector<Number, kLanes>& a) {
  Number found = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) found = a.v[i] > found ? a.v[i] : found;
  return found;
}
MOEGATE_INLINE int32_t least(const Ints& a) {
  int32_t found = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) found = a.v[i] < found ? a.v[i] : found;
  return found;
}

MOEGATE_INLINE Mask either_is_nan(const Floats& a, const Floats& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] != a.v[i] || b.v[i] != b.v[i]; });
}
MOEGATE_INLINE Mask is_nan(const Floats& a) { return either_is_nan(a, a); }
MOEGATE_INLINE Mask less(const Floats& a, const Floats& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] < b.v[i]; });
}
template <class Number>
MOEGATE_INLINE Mask at_least(const Vector<Number, kLanes>& a, const Vector<Number, kLanes>& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] >= b.v[i]; });
}
MOEGATE_INLINE Mask greater(const Ints& a, const Ints& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] > b.v[i]; });
}
MOEGATE_INLINE Mask equal(const Ints& a, const Ints& b) {
  return each_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] == b.v[i]; });
}
MOEGATE_INLINE HalfMask less(const Doubles& a, const Doubles& b) {
  return each_half_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] < b.v[i]; });
}
MOEGATE_INLINE HalfMask at_least(const Doubles& a, const Doubles& b) {
  return each_half_mask_lane([&](int64_t i) MOEGATE_INLINED { return a.v[i] >= b.v[i]; });
}
template <class Number>
MOEGATE_INLINE auto select(const Mask& mask, const Vector<Number, kLanes>& a, const Vector<Number, kLanes>& b) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return mask.v[i] ? a.v[i] : b.v[i]; });
}
MOEGATE_INLINE Doubles select(const HalfMask& mask, const Doubles& a, const Doubles& b) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return mask.v[i] ? a.v[i] : b.v[i]; });
}
MOEGATE_INLINE Ints count_at_least(const Ints& counts, const Ints& a, const Ints& b) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED {
    return counts.v[i] + static_cast<int32_t>(a.v[i] >= b.v[i]);
  });
}
MOEGATE_INLINE Ints count_greater(const Ints& counts, const Ints& a, const Ints& b) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED {
    return counts.v[i] + static_cast<int32_t>(a.v[i] > b.v[i]);
  });
}
MOEGATE_INLINE Longs count_greater(const Longs& counts, const Longs& a, const Longs& b) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED {
    return counts.v[i] + static_cast<int64_t>(a.v[i] > b.v[i]);
  });
}

// mantissa · 2^exponent for whole exponents, rounded once: two factors, since 2^exponent itself may not be normal.
MOEGATE_INLINE Floats times_power_of_two(const Floats& mantissa, const Floats& exponent) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED {
    const int32_t whole = exponent.v[i] == exponent.v[i] ? static_cast<int32_t>(exponent.v[i]) : 0;
    const int32_t half = whole >> 1;
    const float first = float_of(static_cast<uint32_t>(half + 127) << 23);
    return mantissa.v[i] * first * float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  });
}

// Flips all bits but the sign of negative numbers. Its own inverse.
MOEGATE_INLINE Ints flip_negative(const Ints& a) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return a.v[i] ^ ((a.v[i] >> 31) & 0x7fffffff); });
}
MOEGATE_INLINE Ints as_ints(const Floats& a) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return static_cast<int32_t>(bits_of(a.v[i])); });
}
MOEGATE_INLINE Floats as_floats(const Ints& a) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return float_of(static_cast<uint32_t>(a.v[i])); });
}

// Two vectors that hold every lane of `a` and of `b` once, arranged so that combining them lane by lane, level after
// level, reduces sixteen vectors to one: a first step of level 0 for each neighbouring pair, then of level 1, 2 and 3.
struct PairOfInts {
  Ints first, second;
};
template <int level>
MOEGATE_INLINE PairOfInts interleaved(const Ints& a, const Ints& b) {
  constexpr int64_t lanes_of_each = kLanes >> (level + 1); // that are left of one of the first vectors
  PairOfInts pair;
  for (int64_t i = 0; i < kLanes; ++i) {
    const Ints& from = i < kHalfLanes ? a : b;
    const int64_t block = (i % kHalfLanes) / lanes_of_each, lane = i % lanes_of_each;
    pair.first.v[i] = from.v[2 * block * lanes_of_each + lane];
    pair.second.v[i] = from.v[(2 * block + 1) * lanes_of_each + lane];
  }
  return pair;
}
// Puts the lanes of the last step in the order of the sixteen vectors.
MOEGATE_INLINE Ints in_order_of_vectors(const Ints& a) { return a; }

// Writes the marked lanes of `a` one after another; up to 16 elements behind them are overwritten too.
MOEGATE_INLINE int64_t append(int32_t* to, const Mask& mask, const Ints& a) {
  int64_t count = 0;
  for (int64_t i = 0; i < kLanes; ++i) {
    to[count] = a.v[i];
    count += mask.v[i];
  }
  return count;
}

// 2^(n / 16), where the lowest bits of `a` hold n; see precise.h for the table.
MOEGATE_INLINE Doubles power_of_sixteenths(const Doubles& a, const uint64_t* powers) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED {
    uint64_t n;
    std::memcpy(&n, &a.v[i], sizeof n);
    const uint64_t bits = powers[n & 15] + (n << 48);
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
  });
}

MOEGATE_INLINE Doubles lower_half(const Floats& a) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return static_cast<double>(a.v[i]); });
}
MOEGATE_INLINE Doubles upper_half(const Floats& a) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return static_cast<double>(a.v[i + kHalfLanes]); });
}
MOEGATE_INLINE Floats narrowed(const Doubles& lower, const Doubles& upper) {
  Floats result;
  for (int64_t i = 0; i < kHalfLanes; ++i) {
    result.v[i] = static_cast<float>(lower.v[i]);
    result.v[i + kHalfLanes] = static_cast<float>(upper.v[i]);
  }
  return result;
}
MOEGATE_INLINE void store_narrowed(float* to, const Doubles& a) {
  for (int64_t i = 0; i < kHalfLanes; ++i) to[i] = static_cast<float>(a.v[i]);
}

MOEGATE_INLINE Doubles load_widened(const float* from) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED { return static_cast<double>(from[i]); });
}
// The first `count` of eight; the lanes behind them are 0.
MOEGATE_INLINE Doubles load_widened(const float* from, int64_t count) {
  return each_lane<kHalfLanes>([&](int64_t i) MOEGATE_INLINED {
    return i < count ? static_cast<double>(from[i]) : 0.0;
  });
}

template <class Element>
MOEGATE_INLINE Floats load_as_floats(const Element* from, int64_t count = kLanes) {
  return each_lane<kLanes>([&](int64_t i) MOEGATE_INLINED { return i < count ? to_float(from[i]) : 0.0f; });
}
template <class Element>
MOEGATE_INLINE void store_as_elements(Element* to, const Floats& a) {
  for (int64_t i = 0; i < kLanes; ++i) from_float(a.v[i], to[i]);
}

} // namespace
} // namespace moegate::MOEGATE_ISA
