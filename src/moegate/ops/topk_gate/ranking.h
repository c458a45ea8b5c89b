// First stage: a row of logits becomes the keys that experts are ordered by.
#pragma once

#include "cpu/portable.h"
#include "cpu/logit_rows.h"
#include "cpu/selection.h"
#include "topk_gate/cpu_kernel.h"

namespace moegate::MOEGATE_ISA {
namespace {

// keys[e] = sort key of value(logit of e, e).
template <class Element, class Keys, class Value>
inline RowFacts write_keys(const Row<Element>& row, Keys keys, Value&& value) {
  Mask nan = no_lanes();
  Floats most = floats(-kInfinity);
  each_block(row, [&](int64_t i, Floats logits, int64_t count) {
    nan = nan | is_nan(logits);
    most = maximum(logits, most);
    store(keys + i, excluded_past(count, sort_keys(value(logits, i))));
  });
  return {any(nan), greatest(most)};
}

template <class Element>
inline RowFacts write_logit_keys(const Row<Element>& row, int32_t* keys) {
  return write_keys(row, keys, [](Floats logits, int64_t) { return logits; });
}

// `bias` has padded(E) elements, or is null.
template <class Element, class Keys, class Score>
inline RowFacts write_keys_of(const Row<Element>& row, const float* bias, Keys keys, Score&& score) {
  if (bias == nullptr) return write_keys(row, keys, [&](Floats logits, int64_t) { return score(logits); });
  return write_keys(row, keys, [&](Floats logits, int64_t i) { return score(logits) + load(bias + i); });
}

// exp(z - max) of each logit, as float bits in `powers`; returns their sum.
template <class Element>
inline double write_softmax_powers(const Row<Element>& row, float greatest, int32_t* powers) {
  Doubles total_a = doubles(0.0), total_b = doubles(0.0);
  each_block(row, [&](int64_t i, Floats logits, int64_t count) {
    Floats power = portable_exp(logits - floats(greatest));
    if (count < kLanes) power = select(first_lanes(count), power, floats(0.0f));
    total_a = total_a + on_grid(lower_half(power));
    total_b = total_b + on_grid(upper_half(power));
    store(powers + i, as_ints(power));
  });
  return sum_of_lanes(total_a + total_b);
}

template <class Element>
inline RowFacts write_softmax_keys(const Row<Element>& row, const float* bias, int32_t* keys) {
  const RowFacts facts = facts_of(row);
  const float greatest = facts.has_nan ? __builtin_nanf("") : facts.greatest;
  const Floats total = floats(static_cast<float>(write_softmax_powers(row, greatest, keys)));
  for (int64_t i = 0; i < row.size; i += kLanes) {
    Floats score = as_floats(load(keys + i)) / total;
    if (bias != nullptr) score = score + load(bias + i);
    const int64_t count = row.size - i < kLanes ? row.size - i : kLanes;
    store(keys + i, excluded_past(count, sort_keys(score)));
  }
  return facts;
}

// Keys of the selection scores: the scores, or the logits for a softmax after the selection, plus the bias.
template <class Element>
inline RowFacts write_score_keys(const Row<Element>& row, GateScore score, const float* bias, int32_t* keys) {
  switch (score) {
    case GateScore::softmax:
      return write_softmax_keys(row, bias, keys);
    case GateScore::sigmoid:
      return write_keys_of(row, bias, keys, [](Floats logits) { return portable_sigmoid(logits); });
    case GateScore::sqrt_softplus:
      return write_keys_of(row, bias, keys, [](Floats logits) { return portable_sqrt_softplus(logits); });
    case GateScore::relu:
      return write_keys_of(row, bias, keys, [](Floats logits) { return maximum(floats(0.0f), logits); });
    default:
      return write_keys_of(row, bias, keys, [](Floats logits) { return logits; });
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
