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

inline int64_t whole_blocks(int64_t top_k) { return (top_k + kHalfLanes - 1) / kHalfLanes * kHalfLanes; }

// Writes the logits of the chosen, in whole blocks, all NaN for a row that has one; returns the greatest.
template <class Element>
inline float look_up(const Row<Element>& row, const int32_t* order, int64_t top_k, bool has_nan, float* chosen) {
  if (has_nan) {
    fill(chosen, whole_blocks(top_k), __builtin_nanf(""));
    return chosen[0];
  }
  for (int64_t i = 0; i < top_k; i += kHalfLanes) {
    store_narrowed(chosen + i, gathered(row.logits, order + i, top_k - i));
  }
  float greatest = chosen[0];
  for (int64_t i = 1; i < top_k; ++i) greatest = chosen[i] > greatest ? chosen[i] : greatest;
  return greatest;
}

// Σ exp(z - max) over a row. NaN for a row with +inf, or of -inf alone.
template <class Element>
inline double softmax_total(const Row<Element>& row, float greatest) {
  const Doubles most = doubles(static_cast<double>(greatest));
  Doubles total_a = doubles(0.0), total_b = doubles(0.0);
  each_block<kTogetherWide>(row, [&](int64_t, const auto& logits, int64_t) MOEGATE_INLINED {
    one_by_one(0, precise_exp_above_zero(widened(logits) - most), [&](int64_t i, Doubles power) MOEGATE_INLINED {
      if (i % (2 * kLanes) == 0) total_a = total_a + power;
      else total_b = total_b + power;
    });
  });
  return sum_of_lanes(total_a + total_b);
}

inline double logsumexp_of(Softmax softmax) {
  const bool is_infinite = __builtin_isinf(softmax.greatest);
  return is_infinite ? softmax.greatest : softmax.greatest + precise_log(softmax.total);
}

// `small` is exp(-|z|). V is Doubles or several.
template <class V>
MOEGATE_INLINE V precise_sigmoid(const V& z, const V& small) {
  const Doubles one = doubles(1.0);
  return select(at_least(z, doubles(0.0)), one, small) / (one + small);
}

template <class V>
MOEGATE_INLINE V precise_sqrt_softplus(const V& z) {
  const auto tail = less(z, doubles(-40.0));
  const V power = precise_exp(select(tail, z * doubles(0.5), negative_magnitude(z)));
  const V body = square_root(maximum(doubles(0.0), z) + precise_log1p(power));
  return select(tail, power, body);
}

// Scores before any renormalisation; those of the softmaxes are exp(z - greatest), not divided by their total yet.
template <class V>
MOEGATE_INLINE V precise_score(GateScore score, const V& z, const V& greatest) {
  switch (score) {
    case GateScore::softmax:
    case GateScore::softmax_selected:
      return precise_exp(z - greatest);
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
MOEGATE_INLINE void write_weights(float* to, Doubles weights, float scale, int64_t count) {
  float rounded[kHalfLanes];
  store_narrowed(rounded, weights);
  for (int64_t i = 0; i < kHalfLanes; ++i) rounded[i] *= scale;
  if (count >= kHalfLanes) {
    std::memcpy(to, rounded, sizeof rounded);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = rounded[i];
  }
}

// The chosen of several tokens; each token has whole_blocks(K) places, of which the last ones may be empty.
struct Chosen {
  float* logits;   // [tokens, whole_blocks(K)], finite in empty places
  double* scores;  // [tokens, whole_blocks(K)], scratch memory
  Softmax* softmax; // [tokens]
};

// The scores of all chosen, several blocks together: each is a long chain of steps, and knows nothing of the others.
inline void score_chosen(GateScore score, const Chosen& chosen, int64_t tokens, int64_t width) {
  constexpr int64_t n = kTogether;
  const int64_t blocks = tokens * width / kHalfLanes, blocks_of_one = width / kHalfLanes;
  const auto write = [&]<int64_t count>(int64_t first) MOEGATE_INLINED {
    const auto z = each_of<count>([&](int64_t i) MOEGATE_INLINED {
      return load_widened(chosen.logits + (first + i) * kHalfLanes);
    });
    const auto greatest = each_of<count>([&](int64_t i) MOEGATE_INLINED {
      return doubles(chosen.softmax[(first + i) / blocks_of_one].greatest);
    });
    const auto scores = precise_score(score, z, greatest);
    for (int64_t i = 0; i < count; ++i) store(chosen.scores + (first + i) * kHalfLanes, scores.v[i]);
  };
  int64_t block = 0;
  for (; block + n <= blocks; block += n) write.template operator()<n>(block);
  if constexpr (n > 1) {
    for (; block < blocks; ++block) write.template operator()<1>(block);
  }
}

// What the scores of a token are divided by.
inline double divisor_of(const GateRule& rule, const double* scores, double total) {
  const bool normalizes = rule.weight_score == GateScore::softmax || rule.weight_score == GateScore::softmax_selected;
  if (!rule.renormalize && rule.weight_score != GateScore::softmax_selected) return normalizes ? total : 1.0;
  Doubles sums = doubles(0.0);
  for (int64_t i = 0; i < rule.top_k; i += kHalfLanes) {
    const int64_t count = rule.top_k - i;
    const Doubles score = load(scores + i);
    sums = sums + (count < kHalfLanes ? select(first_half_lanes(count), score, doubles(0.0)) : score);
  }
  const double sum = sum_of_lanes(sums);
  if (rule.weight_score == GateScore::softmax_selected) total = sum;
  // s / (Σ s + eps) with s = x / total is x / (Σ x + eps · total).
  return rule.renormalize ? sum + (normalizes ? rule.eps * total : rule.eps) : total;
}

// The weights of several tokens, each at [token, K] of `weights`.
inline void weigh(const GateRule& rule, const Chosen& chosen, int64_t tokens, float* const* weights) {
  const int64_t width = whole_blocks(rule.top_k);
  score_chosen(rule.weight_score, chosen, tokens, width);
  for (int64_t token = 0; token < tokens; ++token) {
    const double* scores = chosen.scores + token * width;
    const Doubles divisor = doubles(divisor_of(rule, scores, chosen.softmax[token].total));
    for (int64_t i = 0; i < rule.top_k; i += kHalfLanes) {
      write_weights(weights[token] + i, load(scores + i) / divisor, rule.scale, rule.top_k - i);
    }
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
