#include "topk_gate/cpu_kernel.h"

#include "cpu/pieces.h"
#include "topk_gate/slopes.h"

namespace moegate::MOEGATE_ISA {
namespace {

// So many tokens go through each stage together: what one waits for, another can use.
constexpr int64_t kBatch = 8;
constexpr int64_t kBatchSlots = 256; // of all tokens together, so that they stay close to the processor

// A token on its way through the stages.
struct Passing {
  int64_t token;
  double of_logsumexp; // its gradient
};

struct GradientWorkspace {
  int64_t batch;   // tokens at once
  int64_t width;   // slots of a token, in whole blocks
  Slots slots;     // [batch, width]
  int64_t* index;  // [batch, width]
  double* greatest; // [batch], what the softmax of a token goes by
  Passing* passing; // [batch]
  float* row;      // padded(E), where the logits of a token are not contiguous
  int64_t size;    // in bytes
};

GradientWorkspace gradient_workspace(const GateGradientArguments& arguments, void* memory) {
  Pieces pieces(memory);
  GradientWorkspace work{};
  work.width = whole_blocks(arguments.top_k);
  work.batch = work.width > kBatchSlots / kBatch ? 1 : kBatch;
  const int64_t num_slots = work.batch * work.width;
  work.slots = {num_slots, pieces.next<double>(num_slots), pieces.next<double>(num_slots),
                pieces.next<double>(num_slots), pieces.next<double>(num_slots)};
  work.index = pieces.next<int64_t>(num_slots);
  work.greatest = pieces.next<double>(work.batch);
  work.passing = pieces.next<Passing>(work.batch);
  if (arguments.logits != nullptr && arguments.expert_stride != 1) {
    work.row = pieces.next<float>(padded(arguments.num_experts));
  }
  work.size = pieces.taken();
  return work;
}

// Whether the token has experts, and every index is one.
enum class TokenIndex { empty, valid, invalid };

template <class Index>
TokenIndex read_index(const Index* from, int64_t top_k, int64_t num_experts, int64_t* index) {
  bool invalid = false, found = false;
  for (int64_t i = 0; i < top_k; ++i) {
    const int64_t expert = from[i];
    index[i] = expert;
    invalid |= (expert < -1) | (expert >= num_experts);
    found |= expert >= 0;
  }
  return invalid ? TokenIndex::invalid : found ? TokenIndex::valid : TokenIndex::empty;
}

TokenIndex read_index(const GateGradientArguments& arguments, int64_t token, int64_t* index) {
  const int64_t top_k = arguments.top_k, first = token * top_k;
  if (arguments.narrow_index) {
    return read_index(static_cast<const int32_t*>(arguments.index) + first, top_k, arguments.num_experts, index);
  }
  return read_index(static_cast<const int64_t*>(arguments.index) + first, top_k, arguments.num_experts, index);
}

void read_slots(const GateGradientArguments& arguments, int64_t token, const Slots& slots) {
  const float* chosen = arguments.chosen + token * arguments.top_k;
  each_eight(slots, [&](int64_t i, int64_t count) MOEGATE_INLINED {
    store(slots.logits + i, load_widened(chosen + i, count));
  });
  if (arguments.grad_weights == nullptr) return;
  const int64_t stride = arguments.grad_weights_strides[1];
  const float* grads = arguments.grad_weights + token * arguments.grad_weights_strides[0];
  if (stride == 1) {
    const Doubles scale = doubles(arguments.scale);
    each_eight(slots, [&](int64_t i, int64_t count) MOEGATE_INLINED {
      store(slots.grads + i, load_widened(grads + i, count) * scale);
    });
    return;
  }
  for (int64_t i = 0; i < slots.count; ++i) slots.grads[i] = static_cast<double>(grads[i * stride]) * arguments.scale;
}

// Gradients of the chosen logits of a batch, in slots.grads.
void differentiate(const GateGradientArguments& arguments, const GradientWorkspace& work, int64_t count) {
  const GateScore kind = arguments.weight_score;
  const int64_t top_k = arguments.top_k;
  const bool has_logsumexp = arguments.logsumexp != nullptr && arguments.logits != nullptr;
  if (arguments.grad_weights != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const double logsumexp = has_logsumexp ? arguments.logsumexp[work.passing[i].token] : 0.0;
      work.greatest[i] = greatest_of(work.slots.part(i * work.width, top_k), kind, logsumexp);
    }
    write_scores(work.slots.part(0, count * work.width), kind, work.greatest, work.width);
  }
  for (int64_t i = 0; i < count; ++i) {
    const Slots slots = work.slots.part(i * work.width, top_k);
    Passing& passing = work.passing[i];
    passing.of_logsumexp = 0.0;
    if (arguments.grad_logsumexp != nullptr) {
      passing.of_logsumexp = arguments.grad_logsumexp[passing.token * arguments.grad_logsumexp_stride];
    }
    if (arguments.grad_weights != nullptr) {
      passing.of_logsumexp += through_weights(slots, kind, arguments.renormalize ? &arguments.eps : nullptr);
    } else {
      for (int64_t k = 0; k < top_k; ++k) slots.grads[k] = 0.0;
    }
    if (arguments.grad_chosen == nullptr) continue;
    const float* grads = arguments.grad_chosen + passing.token * arguments.grad_chosen_strides[0];
    for (int64_t k = 0; k < top_k; ++k) slots.grads[k] += grads[k * arguments.grad_chosen_strides[1]];
  }
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
void spread_to_all(const GateGradientArguments& arguments, const GradientWorkspace& work, const Passing& passing,
                   const Slots& slots, Element* out) {
  const int64_t token = passing.token, num_experts = arguments.num_experts;
  const Element* start = static_cast<const Element*>(arguments.logits) + token * arguments.token_stride;
  const double grad = passing.of_logsumexp, logsumexp = arguments.logsumexp[token];
  add_dense(slots, grad, logsumexp);
  if (arguments.expert_stride == 1) return write_dense(Row<Element>{start, num_experts}, grad, logsumexp, out);
  for (int64_t i = 0; i < num_experts; ++i) work.row[i] = to_float(start[i * arguments.expert_stride]);
  write_dense(Row<float>{work.row, num_experts}, grad, logsumexp, out);
}

template <class Element>
void gradient_batch(const GateGradientArguments& arguments, const GradientWorkspace& work, int64_t count) {
  differentiate(arguments, work, count);
  for (int64_t i = 0; i < count; ++i) {
    const Slots slots = work.slots.part(i * work.width, arguments.top_k);
    const int64_t* index = work.index + i * work.width;
    Element* out = static_cast<Element*>(arguments.grad_logits) + work.passing[i].token * arguments.num_experts;
    if (arguments.logits != nullptr) spread_to_all(arguments, work, work.passing[i], slots, out);
    for (int64_t k = 0; k < slots.count; ++k) {
      if (index[k] >= 0) from_float(static_cast<float>(slots.grads[k]), out[index[k]]);
    }
  }
}

template <class Element>
bool gradient_rows(const GateGradientArguments& arguments, const GradientWorkspace& work, int64_t begin, int64_t end) {
  const int64_t num_experts = arguments.num_experts;
  int64_t count = 0;
  for (int64_t token = begin; token < end; ++token) {
    const TokenIndex kind = read_index(arguments, token, work.index + count * work.width);
    if (kind == TokenIndex::invalid) return false;
    if (kind == TokenIndex::empty || arguments.logits == nullptr) {
      std::memset(static_cast<Element*>(arguments.grad_logits) + token * num_experts, 0, num_experts * sizeof(Element));
    }
    if (kind == TokenIndex::empty) continue;
    read_slots(arguments, token, work.slots.part(count * work.width, arguments.top_k));
    work.passing[count++].token = token;
    if (count < work.batch) continue;
    gradient_batch<Element>(arguments, work, count);
    count = 0;
  }
  gradient_batch<Element>(arguments, work, count);
  return true;
}

} // namespace

int64_t topk_gate_gradient_scratch(const GateGradientArguments& arguments) {
  return gradient_workspace(arguments, nullptr).size;
}

bool topk_gate_gradient_rows(
    const GateGradientArguments& arguments, void* scratch, int64_t begin, int64_t end) {
  const GradientWorkspace work = gradient_workspace(arguments, scratch);
  for (int64_t i = 0; i < work.slots.count; ++i) work.slots.logits[i] = work.slots.grads[i] = 0.0;
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
