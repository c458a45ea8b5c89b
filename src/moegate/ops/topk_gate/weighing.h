// Last stage: the weights of the chosen experts, in double precision and rounded once; the scale is a second rounding.
#pragma once

#include "cpu/precise.h"
#include "topk_gate/ranking.h"

namespace moegate::MOEGATE_ISA {
namespace {

// What the scores of one token are made of besides its chosen logits.
struct Softmax {
  double greatest; // of the logits that it goes over
  double total;    // of exp(z - greatest)
};

inline void fill(float* values, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) values[i] = value;
}

// Writes the logits of the chosen, all NaN for a row that has one, and returns the greatest.
template <class Element>
inline float look_up(const Row<Element>& row, const int32_t* order, int64_t top_k, bool has_nan, float* chosen) {
  if (has_nan) {
    fill(chosen, top_k, __builtin_nanf(""));
    return chosen[0];
  }
  int64_t i = 0;
  for (; i + kHalfLanes <= top_k; i += kHalfLanes) store_narrowed(chosen + i, gathered(row.logits, order + i));
  for (; i < top_k; ++i) chosen[i] = to_float(row.logits[order[i]]);
  float greatest = -kInfinity;
  for (i = 0; i < top_k; ++i) greatest = chosen[i] > greatest ? chosen[i] : greatest;
  return greatest;
}

// Σ exp(z - max) over a row. NaN for a row with +inf, or of -inf alone.
template <class Element>
inline double softmax_total(const Row<Element>& row, float greatest) {
  const Doubles most = doubles(static_cast<double>(greatest));
  Doubles total_a = doubles(0.0), total_b = doubles(0.0);
  each_block(row, [&](int64_t, Floats logits, int64_t) {
    total_a = total_a + precise_exp(lower_half(logits) - most);
    total_b = total_b + precise_exp(upper_half(logits) - most);
  });
  return sum_of_lanes(total_a + total_b);
}

inline double logsumexp_of(Softmax softmax) {
  const bool is_infinite = __builtin_isinf(softmax.greatest);
  return is_infinite ? softmax.greatest : softmax.greatest + precise_log(softmax.total);
}

// `small` is exp(-|z|).
inline Doubles precise_sigmoid(Doubles z, Doubles small) {
  const Doubles one = doubles(1.0);
  return select(at_least(z, doubles(0.0)), one, small) / (one + small);
}

inline Doubles precise_sqrt_softplus(Doubles z) {
  const HalfMask tail = less(z, doubles(-40.0));
  const Doubles power = precise_exp(select(tail, z * doubles(0.5), negative_magnitude(z)));
  const Doubles body = square_root(maximum(doubles(0.0), z) + precise_log1p(power));
  return select(tail, power, body);
}

// Scores before any renormalisation; those of the softmaxes are not divided by their total yet.
inline Doubles precise_score(GateScore score, Doubles z, const Softmax& softmax) {
  switch (score) {
    case GateScore::softmax:
    case GateScore::softmax_selected:
      return precise_exp(z - doubles(softmax.greatest));
    case GateScore::sigmoid:
      return precise_sigmoid(z, precise_exp(negative_magnitude(z)));
    case GateScore::sqrt_softplus:
      return precise_sqrt_softplus(z);
    case GateScore::relu:
      return maximum(doubles(0.0), z);
    default:
      return z;
  }
}

// Writes the first `count` of eight weights.
inline void write_weights(float* to, Doubles weights, float scale, int64_t count) {
  float rounded[kHalfLanes];
  store_narrowed(rounded, weights);
  for (int64_t i = 0; i < kHalfLanes; ++i) rounded[i] *= scale;
  std::memcpy(to, rounded, (count < kHalfLanes ? count : kHalfLanes) * sizeof(float));
}

// weights[k] from the chosen logits, of which there are padded(k); `scores` is scratch memory for as many doubles.
inline void weigh(const GateRule& rule, const float* chosen, Softmax softmax, double* scores, float* weights) {
  const bool normalizes = rule.weight_score == GateScore::softmax || rule.weight_score == GateScore::softmax_selected;
  Doubles sums = doubles(0.0);
  for (int64_t i = 0; i < rule.top_k; i += kHalfLanes) {
    const Doubles score = precise_score(rule.weight_score, load_widened(chosen + i), softmax);
    store(scores + i, score);
    const int64_t count = rule.top_k - i;
    sums = sums + (count < kHalfLanes ? select(first_half_lanes(count), score, doubles(0.0)) : score);
  }
  const double sum = sum_of_lanes(sums);
  if (rule.weight_score == GateScore::softmax_selected) softmax.total = sum;
  double divisor = normalizes ? softmax.total : 1.0;
  // s / (Σ s + eps) with s = x / total is x / (Σ x + eps · total).
  if (rule.renormalize) divisor = sum + (normalizes ? rule.eps * softmax.total : rule.eps);
  for (int64_t i = 0; i < rule.top_k; i += kHalfLanes) {
    write_weights(weights + i, load(scores + i) / doubles(divisor), rule.scale, rule.top_k - i);
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
