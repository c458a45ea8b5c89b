// The gradient of a token's weights with respect to its chosen logits, in double precision.
#pragma once

#include "topk_gate/weighing.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The slots of one token; each array has padded(K) elements.
struct Slots {
  int64_t count;
  double* logits;
  double* scores;
  double* grads; // of the weights, and later of the logits
};

template <class Visit>
inline void each_eight(const Slots& slots, Visit&& visit) {
  for (int64_t i = 0; i < slots.count; i += kHalfLanes) visit(i, slots.count - i);
}

inline Doubles zero_past(int64_t count, Doubles values) {
  return count < kHalfLanes ? select(first_half_lanes(count), values, doubles(0.0)) : values;
}

inline double sum_of(const Slots& slots, const double* values) {
  Doubles sums = doubles(0.0);
  each_eight(slots, [&](int64_t i, int64_t count) { sums = sums + zero_past(count, load(values + i)); });
  return sum_of_lanes(sums);
}

inline double dot_of(const Slots& slots, const double* a, const double* b) {
  Doubles sums = doubles(0.0);
  each_eight(slots, [&](int64_t i, int64_t count) { sums = sums + zero_past(count, load(a + i) * load(b + i)); });
  return sum_of_lanes(sums);
}

// grad · ds/dz of a score that looks at its own logit alone.
inline Doubles times_slope(GateScore kind, Doubles grad, Doubles z, Doubles score) {
  const Doubles zero = doubles(0.0);
  if (kind == GateScore::sigmoid) {
    return grad * (score * precise_sigmoid(zero - z, precise_exp(negative_magnitude(z))));
  }
  if (kind == GateScore::sqrt_softplus) {
    // sigmoid(z) / (2 s); in the tail both are exp(z), and s its root.
    const Doubles body = precise_sigmoid(z, precise_exp(negative_magnitude(z))) / (score + score);
    return grad * select(less(z, doubles(-40.0)), score * doubles(0.5), body);
  }
  if (kind == GateScore::relu) return select(at_least(zero, z), zero, grad);
  return grad;
}

inline void write_scores(const Slots& slots, GateScore kind, double logsumexp) {
  double greatest = -kInfinity;
  for (int64_t i = 0; i < slots.count; ++i) greatest = slots.logits[i] > greatest ? slots.logits[i] : greatest;
  // A row with +inf, or of -inf alone, has no softmax over all.
  if (kind == GateScore::softmax) greatest = __builtin_isinf(logsumexp) ? __builtin_nan("") : logsumexp;
  each_eight(slots, [&](int64_t i, int64_t) {
    store(slots.scores + i, precise_score(kind, load(slots.logits + i), doubles(greatest)));
  });
  if (kind != GateScore::softmax_selected) return;
  const Doubles total = doubles(sum_of(slots, slots.scores));
  each_eight(slots, [&](int64_t i, int64_t) { store(slots.scores + i, load(slots.scores + i) / total); });
}

// w = s / (Σ s + eps), so dw_j / ds_i = (δ_ij - w_j) / (Σ s + eps).
inline void through_renormalization(const Slots& slots, double eps) {
  const double divisor = sum_of(slots, slots.scores) + eps;
  const Doubles mean = doubles(dot_of(slots, slots.grads, slots.scores) / divisor);
  each_eight(slots, [&](int64_t i, int64_t) {
    store(slots.grads + i, (load(slots.grads + i) - mean) / doubles(divisor));
  });
}

// Turns the gradients of the scores into those of the logits; returns that of the logsumexp.
inline double through_scores(const Slots& slots, GateScore kind) {
  if (kind == GateScore::softmax || kind == GateScore::softmax_selected) {
    const double total = dot_of(slots, slots.grads, slots.scores);
    const Doubles mean = doubles(kind == GateScore::softmax ? 0.0 : total);
    each_eight(slots, [&](int64_t i, int64_t) {
      store(slots.grads + i, load(slots.scores + i) * (load(slots.grads + i) - mean));
    });
    return kind == GateScore::softmax ? -total : 0.0;
  }
  each_eight(slots, [&](int64_t i, int64_t) {
    const Doubles grad = load(slots.grads + i);
    store(slots.grads + i, times_slope(kind, grad, load(slots.logits + i), load(slots.scores + i)));
  });
  return 0.0;
}

} // namespace
} // namespace moegate::MOEGATE_ISA
