// The gradient of the weights with respect to the chosen logits, in double precision.
#pragma once

#include "topk_gate/weighing.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The slots of one token, or of several with whole blocks for each.
struct Slots {
  int64_t count;
  double* logits;
  double* scores;
  double* slopes; // ds/dz of a score that looks at its own logit alone
  double* grads;  // of the weights, and later of the logits

  Slots part(int64_t first, int64_t size) const {
    return {size, logits + first, scores + first, slopes + first, grads + first};
  }
};

template <class Visit>
MOEGATE_INLINE void each_eight(const Slots& slots, Visit&& visit) {
  for (int64_t i = 0; i < slots.count; i += kHalfLanes) visit(i, slots.count - i);
}

MOEGATE_INLINE Doubles zero_past(int64_t count, Doubles values) {
  return count < kHalfLanes ? select(first_half_lanes(count), values, doubles(0.0)) : values;
}

inline double sum_of(const Slots& slots, const double* values) {
  Doubles sums = doubles(0.0);
  each_eight(slots, [&](int64_t i, int64_t count) MOEGATE_INLINED {
    sums = sums + zero_past(count, load(values + i));
  });
  return sum_of_lanes(sums);
}

inline double dot_of(const Slots& slots, const double* a, const double* b) {
  Doubles sums = doubles(0.0);
  each_eight(slots, [&](int64_t i, int64_t count) MOEGATE_INLINED {
    sums = sums + zero_past(count, load(a + i) * load(b + i));
  });
  return sum_of_lanes(sums);
}

inline bool is_softmax(GateScore kind) { return kind == GateScore::softmax || kind == GateScore::softmax_selected; }

template <class V>
struct ScoreAndSlope {
  V score, slope;
};

// 1 / (1 + exp(-z)) by small = exp(-|z|), and its slope, which stays exact where the score is next to 1.
template <class V>
MOEGATE_INLINE ScoreAndSlope<V> sigmoid_and_slope(const V& z) {
  const Doubles one = doubles(1.0);
  const V small = precise_exp(negative_magnitude(z));
  const V share = one / (one + small), rest = small * share;
  return {select(at_least(z, doubles(0.0)), share, rest), rest * share};
}

// The slope is sigmoid(z) / (2 s); in the tail both are exp(z), and s its root.
template <class V>
MOEGATE_INLINE ScoreAndSlope<V> sqrt_softplus_and_slope(const V& z) {
  const V score = precise_sqrt_softplus(z);
  const V body = precise_sigmoid(z, precise_exp(negative_magnitude(z))) / (score + score);
  return {score, select(less(z, doubles(-40.0)), score * doubles(0.5), body)};
}

template <class V>
MOEGATE_INLINE ScoreAndSlope<V> score_and_slope(GateScore kind, const V& z, const V& greatest) {
  if (kind == GateScore::sigmoid) return sigmoid_and_slope(z);
  if (kind == GateScore::sqrt_softplus) return sqrt_softplus_and_slope(z);
  return {precise_score(kind, z, greatest), z};
}

// Scores and slopes of several tokens, whose softmaxes go by `greatest`; several blocks together, as the forward does.
inline void write_scores(const Slots& slots, GateScore kind, const double* greatest, int64_t width) {
  const int64_t blocks = slots.count / kHalfLanes, blocks_of_one = width / kHalfLanes;
  const auto write = [&]<int64_t count>(int64_t first) MOEGATE_INLINED {
    const auto z = each_of<count>([&](int64_t i) MOEGATE_INLINED {
      return load(slots.logits + (first + i) * kHalfLanes);
    });
    const auto shifts = each_of<count>([&](int64_t i) MOEGATE_INLINED {
      return doubles(greatest[(first + i) / blocks_of_one]);
    });
    const auto found = score_and_slope(kind, z, shifts);
    for (int64_t i = 0; i < count; ++i) {
      store(slots.scores + (first + i) * kHalfLanes, found.score.v[i]);
      store(slots.slopes + (first + i) * kHalfLanes, found.slope.v[i]);
    }
  };
  int64_t block = 0;
  if constexpr (kTogether > 1) {
    for (; block + kTogether <= blocks; block += kTogether) write.template operator()<kTogether>(block);
  }
  for (; block < blocks; ++block) write.template operator()<1>(block);
}

// What the exponents of a token's softmax go by.
inline double greatest_of(const Slots& slots, GateScore kind, double logsumexp) {
  // A row with +inf, or of -inf alone, has no softmax over all.
  if (kind == GateScore::softmax) return __builtin_isinf(logsumexp) ? __builtin_nan("") : logsumexp;
  double greatest = -kInfinity;
  if (kind != GateScore::softmax_selected) return greatest;
  for (int64_t i = 0; i < slots.count; ++i) greatest = slots.logits[i] > greatest ? slots.logits[i] : greatest;
  return greatest;
}

// w = s / (Σ s + eps), so dw_j / ds_i = (δ_ij - w_j) / (Σ s + eps).
inline void through_renormalization(const Slots& slots, double eps) {
  const Doubles factor = doubles(1.0 / (sum_of(slots, slots.scores) + eps));
  const Doubles mean = doubles(dot_of(slots, slots.grads, slots.scores)) * factor;
  each_eight(slots, [&](int64_t i, int64_t) MOEGATE_INLINED {
    store(slots.grads + i, (load(slots.grads + i) - mean) * factor);
  });
}

// Turns the gradients of the scores of one token into those of the logits; returns that of the logsumexp.
inline double through_scores(const Slots& slots, GateScore kind) {
  if (is_softmax(kind)) {
    const double total = dot_of(slots, slots.grads, slots.scores);
    const Doubles mean = doubles(kind == GateScore::softmax ? 0.0 : total);
    each_eight(slots, [&](int64_t i, int64_t) MOEGATE_INLINED {
      store(slots.grads + i, load(slots.scores + i) * (load(slots.grads + i) - mean));
    });
    return kind == GateScore::softmax ? -total : 0.0;
  }
  if (kind == GateScore::identity) return 0.0;
  each_eight(slots, [&](int64_t i, int64_t) MOEGATE_INLINED {
    const Doubles grad = load(slots.grads + i), zero = doubles(0.0);
    const bool is_relu = kind == GateScore::relu;
    const Doubles passed = is_relu ? select(at_least(zero, load(slots.logits + i)), zero, grad)
                                   : grad * load(slots.slopes + i);
    store(slots.grads + i, passed);
  });
  return 0.0;
}

// The gradients of the weights become those of the logits, for one token; returns the gradient of the logsumexp.
inline double through_weights(const Slots& slots, GateScore kind, const double* eps_of_renormalization) {
  if (kind == GateScore::softmax_selected) {
    const Doubles factor = doubles(1.0 / sum_of(slots, slots.scores));
    each_eight(slots, [&](int64_t i, int64_t) MOEGATE_INLINED {
      store(slots.scores + i, load(slots.scores + i) * factor);
    });
  }
  if (eps_of_renormalization != nullptr) through_renormalization(slots, *eps_of_renormalization);
  return through_scores(slots, kind);
}

} // namespace
} // namespace moegate::MOEGATE_ISA
