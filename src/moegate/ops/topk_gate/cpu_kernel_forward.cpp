#include "topk_gate/cpu_kernel.h"

#include "cpu/pieces.h"
#include "topk_gate/batches.h"
#include "topk_gate/groups.h"
#include "topk_gate/ranking.h"
#include "topk_gate/weighing.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct Workspace {
  Selection selection; // its keys are the first token's
  int64_t batch;       // tokens at once
  int64_t keys_stride; // from one token's keys to the next one's
  Groups groups;
  Chosen chosen;     // of a batch
  float* row;        // padded(E), where the logits of a token are not contiguous
  float* bias_copy;  // padded(E), where E is no multiple of 16
  const float* bias; // padded(E), or null
  int64_t size;      // in bytes
};

bool has_groups(const GateRule& rule) { return rule.groups_kept < rule.num_groups; }

Workspace workspace(const GateArguments& arguments, void* memory) {
  const GateRule& rule = arguments.rule;
  const int64_t num_experts = arguments.num_experts;
  const bool copies_bias = arguments.bias != nullptr && num_experts % kLanes != 0;
  int64_t capacity = candidate_capacity(num_experts, rule.top_k);
  if (has_groups(rule)) {
    const int64_t of_groups = candidate_capacity(rule.num_groups, rule.groups_kept);
    capacity = of_groups > capacity ? of_groups : capacity;
  }
  Pieces pieces(memory);
  Workspace work{};
  // The groups read up to one block past the last expert.
  work.keys_stride = padded(num_experts) + kLanes;
  const bool in_batches = chooses_few(num_experts, rule.top_k) && arguments.expert_stride == 1;
  work.batch = in_batches ? tokens_of_a_batch(work.keys_stride) : 1;
  int32_t* keys = pieces.next<int32_t>(work.batch * work.keys_stride);
  int64_t* unique = pieces.next<int64_t>(capacity + kLanes);
  int32_t* maxima = pieces.next<int32_t>(kMostMaxima);
  work.selection = {keys, unique, capacity, maxima};
  // Alone, a token's scores may lie where its candidates were.
  const int64_t width = whole_blocks(rule.top_k);
  work.chosen = {pieces.next<float>(work.batch * width),
                 work.batch > 1 ? pieces.next<double>(work.batch * width) : reinterpret_cast<double*>(unique),
                 pieces.next<Softmax>(work.batch)};
  if (arguments.expert_stride != 1) work.row = pieces.next<float>(padded(num_experts));
  if (copies_bias) work.bias_copy = pieces.next<float>(padded(num_experts));
  work.bias = copies_bias ? work.bias_copy : arguments.bias;
  if (has_groups(rule)) {
    work.groups = {rule.num_groups, rule.groups_kept, rule.groups_by_top2_sum,
                   pieces.next<int32_t>(padded(rule.num_groups)),
                   {pieces.next<int32_t>(padded(rule.num_groups)), unique, capacity, maxima}};
  }
  work.size = pieces.taken();
  return work;
}

// The keys of a row, with the experts of dropped groups excluded.
template <class Element>
RowFacts rank(const GateRule& rule, const Row<Element>& row, const Workspace& work, int32_t* keys) {
  const bool ranks_scores = work.bias != nullptr || rule.ranks_scores;
  if (!has_groups(rule)) {
    return ranks_scores ? write_score_keys(row, rule.score, work.bias, keys) : write_logit_keys(row, keys);
  }
  // A sum of two has to be one of scores; the maximum may be taken of what the experts are ordered by.
  const bool judges_scores = ranks_scores || rule.groups_by_top2_sum;
  RowFacts facts =
      judges_scores ? write_score_keys(row, rule.score, work.bias, keys) : write_logit_keys(row, keys);
  choose_groups(work.groups, keys, row.size);
  if (judges_scores && !ranks_scores) facts = write_logit_keys(row, keys);
  exclude_dropped_groups(work.groups, keys, row.size);
  return facts;
}

template <class Index>
void write_index(const int32_t* order, int64_t top_k, Index* index, int64_t* counts) {
  for (int64_t i = 0; i < top_k; ++i) index[i] = order[i];
  if (counts == nullptr) return;
  for (int64_t i = 0; i < top_k; ++i) ++counts[order[i]];
}

void write_index(const GateArguments& arguments, int64_t token, const int32_t* order, int64_t* counts) {
  const int64_t top_k = arguments.rule.top_k;
  if (arguments.narrow_index) {
    write_index(order, top_k, static_cast<int32_t*>(arguments.index) + token * top_k, counts);
  } else {
    write_index(order, top_k, static_cast<int64_t*>(arguments.index) + token * top_k, counts);
  }
}

void write_masked_token(const GateArguments& arguments, int64_t token) {
  const int64_t top_k = arguments.rule.top_k;
  for (int64_t i = token * top_k; i < (token + 1) * top_k; ++i) {
    if (arguments.narrow_index) static_cast<int32_t*>(arguments.index)[i] = -1;
    else static_cast<int64_t*>(arguments.index)[i] = -1;
  }
  fill(arguments.weights + token * top_k, top_k, 0.0f);
  if (arguments.chosen != nullptr) fill(arguments.chosen + token * top_k, top_k, 0.0f);
  if (arguments.logsumexp != nullptr) arguments.logsumexp[token] = 0.0;
}

// The softmax over all experts; without a look at them for a row that has a NaN.
template <class Element>
Softmax softmax_over(const Row<Element>& row, RowFacts facts) {
  if (facts.has_nan) return {__builtin_nan(""), __builtin_nan("")};
  const float greatest = facts.greatest == facts.greatest ? facts.greatest : facts_of(row).greatest;
  return {greatest, softmax_total(row, greatest)};
}

// Last stages, but for the weights: what is known of a token once its experts are in order; `place` is its own in the
// batch.
template <class Element>
void write_choice(const GateArguments& arguments, const Workspace& work, const Row<Element>& row, RowFacts facts,
                  int64_t token, const int32_t* order, int64_t place, int64_t* counts) {
  const GateRule& rule = arguments.rule;
  const int64_t top_k = rule.top_k;
  float* chosen = work.chosen.logits + place * whole_blocks(top_k);
  Softmax& softmax = work.chosen.softmax[place];
  write_index(arguments, token, order, counts);
  softmax = {look_up(row, order, top_k, facts.has_nan, chosen), 0.0};
  if (arguments.chosen != nullptr) std::memcpy(arguments.chosen + token * top_k, chosen, top_k * sizeof(float));
  if (arguments.logsumexp == nullptr && rule.weight_score != GateScore::softmax) return;
  const Softmax over_all = softmax_over(row, facts);
  if (arguments.logsumexp != nullptr) arguments.logsumexp[token] = logsumexp_of(over_all);
  if (rule.weight_score == GateScore::softmax) softmax = over_all;
}

template <class Element>
void gate_one(const GateArguments& arguments, const Workspace& work, const Row<Element>& row, int64_t token,
              int64_t* counts) {
  const RowFacts facts = rank(arguments.rule, row, work, work.selection.keys);
  const int32_t* order = select_greatest(work.selection, row.size, arguments.rule.top_k);
  write_choice(arguments, work, row, facts, token, order, 0, counts);
  float* weights = arguments.weights + token * arguments.rule.top_k;
  weigh(arguments.rule, work.chosen, 1, &weights);
}

// A token on its way through the stages.
struct Passing {
  int64_t token;
  int32_t* keys;
  RowFacts facts;
  int32_t bound;
  Few few;
};

void order_passing(const Workspace& work, Passing& passing, int64_t num_experts, int64_t top_k) {
  if (num_experts <= kLanes) return order_one_block(passing.keys, passing.keys);
  if (passing.few.count <= kFew) return order_few(passing.few, passing.keys);
  Selection selection = work.selection;
  selection.keys = passing.keys;
  select_among_many(selection, num_experts, top_k);
}

template <class Element>
void gate_batch(const GateArguments& arguments, const Workspace& work, Passing* batch, int64_t count, int64_t* counts) {
  const int64_t num_experts = arguments.num_experts, top_k = arguments.rule.top_k, size = padded(num_experts);
  const auto row_of = [&](const Passing& passing) {
    const Element* logits = static_cast<const Element*>(arguments.logits) + passing.token * arguments.token_stride;
    return Row<Element>{logits, num_experts};
  };
  for (int64_t i = 0; i < count; ++i) {
    batch[i].facts = rank(arguments.rule, row_of(batch[i]), work, batch[i].keys);
  }
  if (num_experts > kLanes) {
    for (int64_t i = 0; i < count; ++i) batch[i].bound = bound_for_few(batch[i].keys, size, top_k);
    for (int64_t i = 0; i < count; ++i) gather_few(batch[i].keys, size, batch[i].bound, batch[i].few);
  }
  for (int64_t i = 0; i < count; ++i) order_passing(work, batch[i], num_experts, top_k);
  float* weights[kBatch];
  for (int64_t i = 0; i < count; ++i) {
    // The order lies in the memory of the keys.
    write_choice(arguments, work, row_of(batch[i]), batch[i].facts, batch[i].token, batch[i].keys, i, counts);
    weights[i] = arguments.weights + batch[i].token * top_k;
  }
  weigh(arguments.rule, work.chosen, count, weights);
}

bool is_masked(const GateArguments& arguments, int64_t token) {
  return arguments.token_mask != nullptr && arguments.token_mask[token * arguments.token_mask_stride] == 0;
}

template <class Element>
void gate_in_batches(
    const GateArguments& arguments, const Workspace& work, int64_t* counts, int64_t begin, int64_t end) {
  Passing batch[kBatch];
  int64_t count = 0;
  for (int64_t i = 0; i < work.batch; ++i) batch[i].keys = work.selection.keys + i * work.keys_stride;
  for (int64_t token = begin; token < end; ++token) {
    if (is_masked(arguments, token)) {
      write_masked_token(arguments, token);
      continue;
    }
    batch[count++].token = token;
    if (count < work.batch) continue;
    gate_batch<Element>(arguments, work, batch, count, counts);
    count = 0;
  }
  gate_batch<Element>(arguments, work, batch, count, counts);
}

template <class Element>
void gate_one_by_one(
    const GateArguments& arguments, const Workspace& work, int64_t* counts, int64_t begin, int64_t end) {
  const int64_t num_experts = arguments.num_experts;
  for (int64_t token = begin; token < end; ++token) {
    if (is_masked(arguments, token)) {
      write_masked_token(arguments, token);
      continue;
    }
    const Element* start = static_cast<const Element*>(arguments.logits) + token * arguments.token_stride;
    if (arguments.expert_stride == 1) {
      gate_one(arguments, work, Row<Element>{start, num_experts}, token, counts);
      continue;
    }
    for (int64_t i = 0; i < num_experts; ++i) work.row[i] = to_float(start[i * arguments.expert_stride]);
    gate_one(arguments, work, Row<float>{work.row, num_experts}, token, counts);
  }
}

template <class Element>
void gate_rows(const GateArguments& arguments, const Workspace& work, int64_t* counts, int64_t begin, int64_t end) {
  if (work.batch > 1) return gate_in_batches<Element>(arguments, work, counts, begin, end);
  gate_one_by_one<Element>(arguments, work, counts, begin, end);
}

} // namespace

int64_t topk_gate_scratch(const GateArguments& arguments) { return workspace(arguments, nullptr).size; }

void topk_gate_rows(
    const GateArguments& arguments, void* scratch, int64_t* counts, int64_t begin, int64_t end) {
  const Workspace work = workspace(arguments, scratch);
  if (work.bias_copy != nullptr) {
    std::memcpy(work.bias_copy, arguments.bias, arguments.num_experts * sizeof(float));
    fill(work.bias_copy + arguments.num_experts, padded(arguments.num_experts) - arguments.num_experts, 0.0f);
  }
  switch (arguments.element) {
    case GateElement::float32:
      return gate_rows<float>(arguments, work, counts, begin, end);
    case GateElement::bfloat16:
      return gate_rows<BFloat16>(arguments, work, counts, begin, end);
    case GateElement::float16:
      return gate_rows<Half>(arguments, work, counts, begin, end);
  }
}

} // namespace moegate::MOEGATE_ISA
