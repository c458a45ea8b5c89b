#include "portable/cpu_kernel.h"

#include "cpu/portable.h"
#include "cpu/logit_rows.h"

namespace moegate::MOEGATE_ISA {
namespace {

template <class Element, class Score>
void score_each(const Row<Element>& row, float* scores, Score&& score) {
  each_block(row, [&](int64_t first, const auto& logits, int64_t count) MOEGATE_INLINED {
    one_by_one(first, score(logits), [&](int64_t i, Floats block) MOEGATE_INLINED {
      if (count == kLanes) {
        store(scores + i, block);
      } else {
        store_as_elements(scores + i, block, count);
      }
    });
  });
}

template <class Element>
void softmax_row(const Row<Element>& row, float* scores) {
  const RowFacts facts = facts_of(row);
  const Floats greatest = floats(facts.has_nan ? __builtin_nanf("") : facts.greatest);
  Doubles total_a = doubles(0.0), total_b = doubles(0.0);
  score_each(row, scores, [&](const auto& logits) MOEGATE_INLINED {
    const auto powers = portable_exp(logits - greatest);
    one_by_one(0, powers, [&](int64_t, Floats power) MOEGATE_INLINED {
      total_a = total_a + on_grid(lower_half(power)); // past the row these are exp(-inf) = 0
      total_b = total_b + on_grid(upper_half(power));
    });
    return powers;
  });
  const Floats total = floats(static_cast<float>(sum_of_lanes(total_a + total_b)));
  score_each(Row<float>{scores, row.size}, scores, [&](const auto& powers) MOEGATE_INLINED { return powers / total; });
}

template <class Element>
void score_rows(const PortableArguments& arguments, int64_t begin, int64_t end) {
  const int64_t size = arguments.row_size;
  for (int64_t i = begin; i < end; ++i) {
    const Row<Element> row{static_cast<const Element*>(arguments.logits) + i * size, size};
    float* scores = arguments.scores + i * size;
    switch (arguments.score) {
      case PortableScore::softmax:
        softmax_row(row, scores);
        break;
      case PortableScore::sigmoid:
        score_each(row, scores, [](const auto& logits) MOEGATE_INLINED { return portable_sigmoid(logits); });
        break;
      case PortableScore::sqrt_softplus:
        score_each(row, scores, [](const auto& logits) MOEGATE_INLINED { return portable_sqrt_softplus(logits); });
        break;
    }
  }
}

} // namespace

void portable_scores_rows(const PortableArguments& arguments, int64_t begin, int64_t end) {
  switch (arguments.element) {
    case PortableElement::float32:
      return score_rows<float>(arguments, begin, end);
    case PortableElement::bfloat16:
      return score_rows<BFloat16>(arguments, begin, end);
    case PortableElement::float16:
      return score_rows<Half>(arguments, begin, end);
  }
}

} // namespace moegate::MOEGATE_ISA
