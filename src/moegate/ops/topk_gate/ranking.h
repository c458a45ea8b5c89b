// First stage: a row of logits becomes the keys that experts are ordered by.
#pragma once

#include "cpu/portable.h"
#include "cpu/logit_rows.h"
#include "cpu/selection.h"
#include "topk_gate/cpu_kernel.h"

namespace moegate::MOEGATE_ISA {
namespace {

// keys[e] = key of value(logit of e, e), which is never -0; returns whether there is a NaN among the values. All logits
// are shown to `look`.
template <class Element, class Keys, class Value, class Key, class Look>
inline bool write_keys(const Row<Element>& row, Keys keys, Value&& value, Key&& key, Look&& look) {
  Mask nan = no_lanes();
  each_block(row, [&](int64_t first, const auto& logits, int64_t count) MOEGATE_INLINED {
    one_by_one(first, logits, look);
    const auto values = value(logits, first);
    nan = nan | any_nan(values);
    one_by_one(first, values, [&](int64_t i, Floats block) MOEGATE_INLINED {
      store(keys + i, excluded_past(count, key(block)));
    });
  });
  return any(nan);
}

// A row without NaN, as nearly all are, is spared the steps that NaN needs.
template <class Element, class Keys, class Value, class Look>
inline bool write_keys(const Row<Element>& row, Keys keys, Value&& value, Look&& look) {
  const auto key_of_number = [](Floats block) MOEGATE_INLINED { return sort_keys_of_numbers(block); };
  if (!write_keys(row, keys, value, key_of_number, look)) [[likely]] return false;
  const auto key_of_any = [](Floats block) MOEGATE_INLINED { return sort_keys(block); };
  write_keys(row, keys, value, key_of_any, [](int64_t, Floats) MOEGATE_INLINED {});
  return true;
}

template <class Element>
inline RowFacts write_logit_keys(const Row<Element>& row, int32_t* keys) {
  Floats most = floats(-kInfinity);
  const auto look = [&](int64_t, Floats logits) MOEGATE_INLINED { most = maximum(logits, most); };
  const auto value = [](const auto& logits, int64_t) MOEGATE_INLINED { return without_negative_zero(logits); };
  const bool has_nan = write_keys(row, keys, value, look);
  return {has_nan, greatest(most)};
}

// The greatest logit is not looked for: few rules need it besides scores.
template <class Element, class Keys, class Value>
inline RowFacts write_value_keys(const Row<Element>& row, Keys keys, Value&& value) {
  const bool has_nan = write_keys(row, keys, value, [](int64_t, Floats) MOEGATE_INLINED {});
  return has_nan ? facts_of(row) : RowFacts{false, __builtin_nanf("")}; // a bias may be NaN where no logit is
}

template <int64_t n>
inline Several<Floats, n> with_bias(const Several<Floats, n>& scores, const float* bias) {
  return each_of<n>([&](int64_t i) MOEGATE_INLINED { return scores.v[i] + load(bias + i * kLanes); });
}

// `bias` has padded(E) elements, or is null; a score is never -0.
template <class Element, class Keys, class Score>
inline RowFacts write_keys_of(const Row<Element>& row, const float* bias, Keys keys, Score&& score) {
  if (bias == nullptr) {
    return write_value_keys(row, keys, [&](const auto& logits, int64_t) MOEGATE_INLINED { return score(logits); });
  }
  return write_value_keys(row, keys, [&](const auto& logits, int64_t first) MOEGATE_INLINED {
    return with_bias(score(logits), bias + first);
  });
}

// exp(z - max) of each logit, as float bits in `powers`; returns their sum.
template <class Element>
inline double write_softmax_powers(const Row<Element>& row, float greatest, int32_t* powers) {
  Doubles total_a = doubles(0.0), total_b = doubles(0.0);
  each_block(row, [&](int64_t first, const auto& logits, int64_t) MOEGATE_INLINED {
    one_by_one(first, portable_exp(logits - floats(greatest)), [&](int64_t i, Floats power) MOEGATE_INLINED {
      total_a = total_a + on_grid(lower_half(power)); // past the row these are exp(-inf) = 0
      total_b = total_b + on_grid(upper_half(power));
      store(powers + i, as_ints(power));
    });
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
      return write_keys_of(row, bias, keys, [](const auto& logits) MOEGATE_INLINED {
        return portable_sigmoid(logits);
      });
    case GateScore::sqrt_softplus:
      return write_keys_of(row, bias, keys, [](const auto& logits) MOEGATE_INLINED {
        return portable_sqrt_softplus(logits);
      });
    case GateScore::relu:
      return write_keys_of(row, bias, keys, [](const auto& logits) MOEGATE_INLINED {
        return without_negative_zero(maximum(floats(0.0f), logits));
      });
    default:
      return write_keys_of(row, bias, keys, [](const auto& logits) MOEGATE_INLINED {
        return without_negative_zero(logits);
      });
  }
}

} // namespace
} // namespace moegate::MOEGATE_ISA
