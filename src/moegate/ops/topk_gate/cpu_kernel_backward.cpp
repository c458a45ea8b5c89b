#include "topk_gate/cpu_kernel.h"

#include "cpu/pieces.h"
#include "topk_gate/slopes.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct GradientWorkspace {
  Slots slots;
  int64_t* index; // [K]
  float* row;     // padded(E), where the logits of a token are not contiguous
  int64_t size;   // in bytes
};

GradientWorkspace gradient_workspace(const GateGradientArguments& arguments, void* memory) {
  const int64_t num_slots = padded(arguments.top_k);
  Pieces pieces(memory);
  GradientWorkspace work{};
  work.slots = {arguments.top_k, pieces.next<double>(num_slots), pieces.next<double>(num_slots),
                pieces.next<double>(num_slots)};
  work.index = pieces.next<int64_t>(arguments.top_k);
  if (arguments.logits != nullptr && arguments.expert_stride != 1) {
    work.row = pieces.next<float>(padded(arguments.num_experts));
  }
  work.size = pieces.taken();
  return work;
}

// Whether the token has experts, and every index is one.
enum class TokenIndex { empty, valid, invalid };

TokenIndex read_index(const GateGradientArguments& arguments, int64_t token, int64_t* index) {
  const int64_t top_k = arguments.top_k;
  TokenIndex result = TokenIndex::empty;
  for (int64_t i = 0; i < top_k; ++i) {
    const int64_t place = token * top_k + i;
    index[i] = arguments.narrow_index ? static_cast<const int32_t*>(arguments.index)[place]
                                      : static_cast<const int64_t*>(arguments.index)[place];
    if (index[i] < -1 || index[i] >= arguments.num_experts) return TokenIndex::invalid;
    if (index[i] >= 0) result = TokenIndex::valid;
  }
  return result;
}

// Gradients of the chosen logits, in slots.grads; returns the gradient of the logsumexp.
double slot_gradients(const GateGradientArguments& arguments, int64_t token, const Slots& slots) {
  const int64_t top_k = arguments.top_k;
  const float* chosen = arguments.chosen + token * top_k;
  for (int64_t i = 0; i < top_k; ++i) slots.logits[i] = chosen[i];
  double of_logsumexp = 0.0;
  if (arguments.grad_logsumexp != nullptr) {
    of_logsumexp = arguments.grad_logsumexp[token * arguments.grad_logsumexp_stride];
  }
  if (arguments.grad_weights == nullptr) {
    for (int64_t i = 0; i < top_k; ++i) slots.grads[i] = 0.0;
  } else {
    const float* grads = arguments.grad_weights + token * arguments.grad_weights_strides[0];
    for (int64_t i = 0; i < top_k; ++i) {
      slots.grads[i] = static_cast<double>(grads[i * arguments.grad_weights_strides[1]]) * arguments.scale;
    }
    write_scores(slots, arguments.weight_score, arguments.logsumexp == nullptr ? 0.0 : arguments.logsumexp[token]);
    if (arguments.renormalize) through_renormalization(slots, arguments.eps);
    of_logsumexp += through_scores(slots, arguments.weight_score);
  }
  if (arguments.grad_chosen != nullptr) {
    const float* grads = arguments.grad_chosen + token * arguments.grad_chosen_strides[0];
    for (int64_t i = 0; i < top_k; ++i) slots.grads[i] += grads[i * arguments.grad_chosen_strides[1]];
  }
  return of_logsumexp;
}

// grad · softmax(z), the gradient that every logit gets through the logsumexp.
template <class Element, class Stored>
void write_dense(const Row<Stored>& row, double grad, double logsumexp, Element* out) {
  const Doubles factor = doubles(grad), shift = doubles(logsumexp);
  each_block<kTogetherWide>(row, [&](int64_t first, const auto& logits, int64_t count) MOEGATE_INLINED {
    const auto powers = factor * precise_exp(widened(logits) - shift);
    one_by_one(first, logits, [&](int64_t i, Floats) MOEGATE_INLINED {
      const int64_t place = (i - first) / kHalfLanes;
      const Floats values = narrowed(powers.v[place], powers.v[place + 1]);
      if (count == kLanes) {
        store_as_elements(out + i, values);
      } else {
        store_as_elements(out + i, values, count);
      }
    });
  });
}

// The chosen get both gradients in one rounding.
void add_dense(const Slots& slots, double grad, double logsumexp) {
  each_eight(slots, [&](int64_t i, int64_t) MOEGATE_INLINED {
    const Doubles dense = doubles(grad) * precise_exp(load(slots.logits + i) - doubles(logsumexp));
    store(slots.grads + i, load(slots.grads + i) + dense);
  });
}

template <class Element>
void spread_to_all(const GateGradientArguments& arguments, const GradientWorkspace& work, int64_t token, double grad,
                   Element* out) {
  const Element* start = static_cast<const Element*>(arguments.logits) + token * arguments.token_stride;
  const double logsumexp = arguments.logsumexp[token];
  add_dense(work.slots, grad, logsumexp);
  if (arguments.expert_stride == 1) {
    return write_dense(Row<Element>{start, arguments.num_experts}, grad, logsumexp, out);
  }
  for (int64_t i = 0; i < arguments.num_experts; ++i) work.row[i] = to_float(start[i * arguments.expert_stride]);
  write_dense(Row<float>{work.row, arguments.num_experts}, grad, logsumexp, out);
}

template <class Element>
bool gradient_rows(const GateGradientArguments& arguments, const GradientWorkspace& work, int64_t begin, int64_t end) {
  const int64_t num_experts = arguments.num_experts;
  for (int64_t token = begin; token < end; ++token) {
    Element* out = static_cast<Element*>(arguments.grad_logits) + token * num_experts;
    const TokenIndex kind = read_index(arguments, token, work.index);
    if (kind == TokenIndex::invalid) return false;
    double of_logsumexp = 0.0;
    if (kind == TokenIndex::valid) of_logsumexp = slot_gradients(arguments, token, work.slots);
    if (kind == TokenIndex::valid && arguments.logits != nullptr) {
      spread_to_all(arguments, work, token, of_logsumexp, out);
    } else {
      std::memset(out, 0, num_experts * sizeof(Element));
    }
    if (kind == TokenIndex::empty) continue;
    for (int64_t i = 0; i < arguments.top_k; ++i) {
      if (work.index[i] >= 0) from_float(static_cast<float>(work.slots.grads[i]), out[work.index[i]]);
    }
  }
  return true;
}

} // namespace

int64_t topk_gate_gradient_scratch(const GateGradientArguments& arguments) {
  return gradient_workspace(arguments, nullptr).size;
}

bool topk_gate_gradient_rows(
    const GateGradientArguments& arguments, void* scratch, int64_t begin, int64_t end) {
  const GradientWorkspace work = gradient_workspace(arguments, scratch);
  for (int64_t i = 0; i < padded(arguments.top_k); ++i) work.slots.logits[i] = work.slots.grads[i] = 0.0;
  switch (arguments.element) {
    case GateElement::float32:
      return gradient_rows<float>(arguments, work, begin, end);
    case GateElement::bfloat16:
      return gradient_rows<BFloat16>(arguments, work, begin, end);
    case GateElement::float16:
      return gradient_rows<Half>(arguments, work, begin, end);
  }
  return false;
}

} // namespace moegate::MOEGATE_ISA
