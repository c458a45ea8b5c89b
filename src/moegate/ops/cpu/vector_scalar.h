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
inline auto each_lane(F&& value_of_lane) {
  Vector<decltype(value_of_lane(int64_t{0})), lanes> result;
  for (int64_t i = 0; i < lanes; ++i) result.v[i] = value_of_lane(i);
  return result;
}
template <class F>
inline Mask each_mask_lane(F&& holds) {
  Mask result;
  for (int64_t i = 0; i < kLanes; ++i) result.v[i] = holds(i);
  return result;
}
template <class F>
inline HalfMask each_half_mask_lane(F&& holds) {
  HalfMask result;
  for (int64_t i = 0; i < kHalfLanes; ++i) result.v[i] = holds(i);
  return result;
}

inline Floats load(const float* from) { return each_lane<kLanes>([&](int64_t i) { return from[i]; }); }
inline Ints load(const int32_t* from) { return each_lane<kLanes>([&](int64_t i) { return from[i]; }); }
inline Doubles load(const double* from) { return each_lane<kHalfLanes>([&](int64_t i) { return from[i]; }); }
inline Longs load(const int64_t* from) { return each_lane<kHalfLanes>([&](int64_t i) { return from[i]; }); }
template <class Number, int64_t lanes>
inline void store(Number* to, const Vector<Number, lanes>& a) {
  for (int64_t i = 0; i < lanes; ++i) to[i] = a.v[i];
}

inline Floats floats(float value) { return each_lane<kLanes>([&](int64_t) { return value; }); }
inline Ints ints(int32_t value) { return each_lane<kLanes>([&](int64_t) { return value; }); }
inline Doubles doubles(double value) { return each_lane<kHalfLanes>([&](int64_t) { return value; }); }
inline Longs longs(int64_t value) { return each_lane<kHalfLanes>([&](int64_t) { return value; }); }
inline Ints lane_numbers() { return each_lane<kLanes>([](int64_t i) { return static_cast<int32_t>(i); }); }

inline Mask first_lanes(int64_t count) { return each_mask_lane([&](int64_t i) { return i < count; }); }
inline HalfMask first_half_lanes(int64_t count) { return each_half_mask_lane([&](int64_t i) { return i < count; }); }
inline Mask operator|(const Mask& a, const Mask& b) { return each_mask_lane([&](int64_t i) { return a.v[i] | b.v[i]; }); }
inline Mask operator&(const Mask& a, const Mask& b) { return each_mask_lane([&](int64_t i) { return a.v[i] & b.v[i]; }); }
inline Mask no_lanes() { return first_lanes(0); }
inline int64_t count_lanes(const Mask& a) {
  int64_t count = 0;
  for (int64_t i = 0; i < kLanes; ++i) count += a.v[i];
  return count;
}
inline bool any(const Mask& a) { return count_lanes(a) != 0; }

template <class Number, int64_t lanes>
inline auto operator+(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] + b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto operator-(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] - b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto operator*(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] * b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto operator/(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] / b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto maximum(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto minimum(const Vector<Number, lanes>& a, const Vector<Number, lanes>& b) {
  return each_lane<lanes>([&](int64_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
template <class Number, int64_t lanes>
inline auto square_root(const Vector<Number, lanes>& a) {
  return each_lane<lanes>([&](int64_t i) { return std::sqrt(a.v[i]); });
}
template <class Number, int64_t lanes>
inline auto negative_magnitude(const Vector<Number, lanes>& a) {
  return each_lane<lanes>([&](int64_t i) { return std::copysign(a.v[i], Number{-1}); });
}
template <class Number>
inline Number greatest(const Vector<Number, kLanes>& a) {
  Number found = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) found = a.v[i] > found ? a.v[i] : found;
  return found;
}
inline int32_t least(const Ints& a) {
  int32_t found = a.v[0];
  for (int64_t i = 1; i < kLanes; ++i) found = a.v[i] < found ? a.v[i] : found;
  return found;
}

inline Mask is_nan(const Floats& a) { return each_mask_lane([&](int64_t i) { return a.v[i] != a.v[i]; }); }
inline Mask less(const Floats& a, const Floats& b) { return each_mask_lane([&](int64_t i) { return a.v[i] < b.v[i]; }); }
template <class Number>
inline Mask at_least(const Vector<Number, kLanes>& a, const Vector<Number, kLanes>& b) {
  return each_mask_lane([&](int64_t i) { return a.v[i] >= b.v[i]; });
}
inline Mask greater(const Ints& a, const Ints& b) { return each_mask_lane([&](int64_t i) { return a.v[i] > b.v[i]; }); }
inline Mask equal(const Ints& a, const Ints& b) { return each_mask_lane([&](int64_t i) { return a.v[i] == b.v[i]; }); }
inline HalfMask less(const Doubles& a, const Doubles& b) {
  return each_half_mask_lane([&](int64_t i) { return a.v[i] < b.v[i]; });
}
inline HalfMask at_least(const Doubles& a, const Doubles& b) {
  return each_half_mask_lane([&](int64_t i) { return a.v[i] >= b.v[i]; });
}
template <class Number>
inline auto select(const Mask& mask, const Vector<Number, kLanes>& a, const Vector<Number, kLanes>& b) {
  return each_lane<kLanes>([&](int64_t i) { return mask.v[i] ? a.v[i] : b.v[i]; });
}
inline Doubles select(const HalfMask& mask, const Doubles& a, const Doubles& b) {
  return each_lane<kHalfLanes>([&](int64_t i) { return mask.v[i] ? a.v[i] : b.v[i]; });
}
inline Ints count_at_least(const Ints& counts, const Ints& a, const Ints& b) {
  return each_lane<kLanes>([&](int64_t i) { return counts.v[i] + static_cast<int32_t>(a.v[i] >= b.v[i]); });
}
inline Ints count_greater(const Ints& counts, const Ints& a, const Ints& b) {
  return each_lane<kLanes>([&](int64_t i) { return counts.v[i] + static_cast<int32_t>(a.v[i] > b.v[i]); });
}
inline Longs count_greater(const Longs& counts, const Longs& a, const Longs& b) {
  return each_lane<kHalfLanes>([&](int64_t i) { return counts.v[i] + static_cast<int64_t>(a.v[i] > b.v[i]); });
}

// mantissa · 2^exponent for whole exponents, rounded once: two factors, since 2^exponent itself may not be normal.
inline Floats times_power_of_two(const Floats& mantissa, const Floats& exponent) {
  return each_lane<kLanes>([&](int64_t i) {
    const int32_t whole = exponent.v[i] == exponent.v[i] ? static_cast<int32_t>(exponent.v[i]) : 0;
    const int32_t half = whole >> 1;
    const float first = float_of(static_cast<uint32_t>(half + 127) << 23);
    return mantissa.v[i] * first * float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  });
}

// Flips all bits but the sign of negative numbers. Its own inverse.
inline Ints flip_negative(const Ints& a) {
  return each_lane<kLanes>([&](int64_t i) { return a.v[i] ^ ((a.v[i] >> 31) & 0x7fffffff); });
}
inline Ints as_ints(const Floats& a) {
  return each_lane<kLanes>([&](int64_t i) { return static_cast<int32_t>(bits_of(a.v[i])); });
}
inline Floats as_floats(const Ints& a) {
  return each_lane<kLanes>([&](int64_t i) { return float_of(static_cast<uint32_t>(a.v[i])); });
}

// Two vectors that hold every lane of `a` and of `b` once, arranged so that combining them lane by lane, level after
// level, reduces sixteen vectors to one: a first step of level 0 for each neighbouring pair, then of level 1, 2 and 3.
struct PairOfInts {
  Ints first, second;
};
template <int level>
inline PairOfInts interleaved(const Ints& a, const Ints& b) {
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
inline Ints in_order_of_vectors(const Ints& a) { return a; }

// Writes the marked lanes of `a` one after another; up to 16 elements behind them are overwritten too.
inline int64_t append(int32_t* to, const Mask& mask, const Ints& a) {
  int64_t count = 0;
  for (int64_t i = 0; i < kLanes; ++i) {
    to[count] = a.v[i];
    count += mask.v[i];
  }
  return count;
}

// 2^n, where the lowest bits of `a` hold n + 1023.
inline Doubles power_of_two_in_low_bits(const Doubles& a) {
  return each_lane<kHalfLanes>([&](int64_t i) {
    uint64_t bits;
    std::memcpy(&bits, &a.v[i], sizeof bits);
    bits <<= 52;
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
  });
}

inline Doubles lower_half(const Floats& a) {
  return each_lane<kHalfLanes>([&](int64_t i) { return static_cast<double>(a.v[i]); });
}
inline Doubles upper_half(const Floats& a) {
  return each_lane<kHalfLanes>([&](int64_t i) { return static_cast<double>(a.v[i + kHalfLanes]); });
}
inline Floats narrowed(const Doubles& lower, const Doubles& upper) {
  return each_lane<kLanes>(
      [&](int64_t i) { return static_cast<float>(i < kHalfLanes ? lower.v[i] : upper.v[i - kHalfLanes]); });
}
inline void store_narrowed(float* to, const Doubles& a) {
  for (int64_t i = 0; i < kHalfLanes; ++i) to[i] = static_cast<float>(a.v[i]);
}

inline Doubles load_widened(const float* from) {
  return each_lane<kHalfLanes>([&](int64_t i) { return static_cast<double>(from[i]); });
}
inline int32_t first_lane(const Ints& a) { return a.v[0]; }

template <class Element>
inline Floats load_as_floats(const Element* from, int64_t count = kLanes) {
  return each_lane<kLanes>([&](int64_t i) { return i < count ? to_float(from[i]) : 0.0f; });
}
template <class Element>
inline void store_as_elements(Element* to, const Floats& a) {
  for (int64_t i = 0; i < kLanes; ++i) from_float(a.v[i], to[i]);
}

} // namespace
} // namespace moegate::MOEGATE_ISA
