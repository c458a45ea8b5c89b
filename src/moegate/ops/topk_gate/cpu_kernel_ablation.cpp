// The gate of sigmoid, bias and renormalised weights, with each optimisation of topk_gate switched off alone. All ways
// give the same bits.
#include "topk_gate/cpu_kernel_ablation.h"

#include "cpu/pieces.h"
#include "topk_gate/pair_keys.h"
#include "topk_gate/ranking.h"
#include "topk_gate/serial_bound.h"
#include "topk_gate/weighing.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kRowsAhead = 2;
constexpr int64_t kFloatsALine = 16;

// What one row is worked on in.
struct Workspace {
  Selection selection;
  SelectionOf<PairKeys> pairs;
  int32_t* order; // capacity
  float* chosen;  // padded(K)
};

// What the stages leave for each other where every stage sees all rows before the next.
struct Stages {
  int32_t* keys;    // [rows, padded(E)]
  int64_t* unique;  // [rows, capacity + kLanes]
  float* chosen;    // [rows, padded(K)]
  int64_t* count;   // [rows] candidates
  int32_t* bound;   // [rows]
  bool* has_nan;    // [rows]
  int32_t* maxima;  // kMostMaxima
  int64_t capacity;

  Selection of(int64_t row, int64_t size) const {
    return {keys + row * padded(size), unique + row * (capacity + kLanes), capacity, maxima};
  }
};

int64_t capacity_of(const AblationArguments& arguments) {
  return candidate_capacity(arguments.num_experts, arguments.rule.top_k);
}

float* next_bias(const AblationArguments& arguments, Pieces& pieces) {
  return pieces.next<float>(padded(arguments.num_experts));
}

Workspace next_workspace(const AblationArguments& arguments, Pieces& pieces) {
  const int64_t capacity = capacity_of(arguments), size = padded(arguments.num_experts);
  Workspace work{};
  int64_t* unique = pieces.next<int64_t>(capacity + kLanes);
  int32_t* maxima = pieces.next<int32_t>(kMostMaxima);
  work.selection = {pieces.next<int32_t>(size), unique, capacity, maxima};
  if (arguments.switched_off == Optimisation::structure_of_arrays) {
    work.pairs = {{pieces.next<Pair>(size), 0}, unique, capacity, maxima};
  }
  work.order = pieces.next<int32_t>(capacity);
  work.chosen = pieces.next<float>(padded(arguments.rule.top_k));
  return work;
}

Stages next_stages(const AblationArguments& arguments, Pieces& pieces, int64_t num_rows) {
  Stages stages{};
  stages.capacity = capacity_of(arguments);
  stages.keys = pieces.next<int32_t>(num_rows * padded(arguments.num_experts));
  stages.unique = pieces.next<int64_t>(num_rows * (stages.capacity + kLanes));
  stages.chosen = pieces.next<float>(num_rows * padded(arguments.rule.top_k));
  stages.count = pieces.next<int64_t>(num_rows);
  stages.bound = pieces.next<int32_t>(num_rows);
  stages.has_nan = pieces.next<bool>(num_rows);
  stages.maxima = pieces.next<int32_t>(kMostMaxima);
  return stages;
}

Row<float> row_of(const AblationArguments& arguments, int64_t token) {
  return {arguments.logits + token * arguments.num_experts, arguments.num_experts};
}

template <class Keys>
bool write_sigmoid_keys(const Row<float>& row, const float* bias, Keys keys) {
  return write_keys_of(row, bias, keys, [](Floats logits) { return portable_sigmoid(logits); }).has_nan;
}

template <class Keys>
int32_t bound_for(const SelectionOf<Keys>& selection, int64_t size, int64_t k) {
  return orders_all(size) ? kExcludedKey : bound_of(selection, size, k);
}

void write_index(const AblationArguments& arguments, int64_t token, const int32_t* order) {
  const int64_t top_k = arguments.rule.top_k;
  for (int64_t i = 0; i < top_k; ++i) arguments.index[token * top_k + i] = order[i];
}

void write_row_weights(const AblationArguments& arguments, int64_t token, const float* chosen, int64_t* scratch) {
  double* scores = reinterpret_cast<double*>(scratch);
  weigh(arguments.rule, chosen, {}, scores, arguments.weights + token * arguments.rule.top_k);
}

// --- each way to find the order of a row; true when the row has a NaN -------------------------------------------------

bool order_as_the_gate(const AblationArguments& arguments, const Row<float>& row, const float* bias,
                       const Workspace& work) {
  const Selection& selection = work.selection;
  const bool has_nan = write_sigmoid_keys(row, bias, selection.keys);
  const int32_t bound = bound_for(selection, row.size, arguments.rule.top_k);
  const int64_t count = write_candidates(selection, row.size, arguments.rule.top_k, bound);
  order_candidates(selection.unique, count, arguments.rule.top_k, work.order);
  return has_nan;
}

bool order_by_serial_reductions(const AblationArguments& arguments, const Row<float>& row, const float* bias,
                                const Workspace& work) {
  const Selection& selection = work.selection;
  const int64_t top_k = arguments.rule.top_k;
  write_sigmoid_keys(row, bias, selection.keys);
  const bool has_nan = has_nan_serially(row);
  const int32_t bound = orders_all(row.size) ? kExcludedKey : bound_serially(selection, row.size, top_k);
  const int64_t count = write_candidates(selection, row.size, top_k, bound);
  order_candidates(selection.unique, count, top_k, work.order);
  return has_nan;
}

// A sorted list of the k best so far, and a branch for each key.
bool order_by_branches(const AblationArguments& arguments, const Row<float>& row, const float* bias,
                       const Workspace& work) {
  const int32_t* keys = work.selection.keys;
  int64_t* best = work.selection.unique;
  const bool has_nan = write_sigmoid_keys(row, bias, work.selection.keys);
  const int64_t top_k = arguments.rule.top_k;
  int64_t count = 0;
  for (int64_t i = 0; i < row.size; ++i) {
    const int64_t found = unique_key(keys[i], static_cast<int32_t>(i));
    if (count == top_k && found < best[top_k - 1]) continue;
    int64_t slot = count < top_k ? count++ : top_k - 1;
    for (; slot > 0 && best[slot - 1] < found; --slot) best[slot] = best[slot - 1];
    best[slot] = found;
  }
  for (int64_t i = 0; i < top_k; ++i) work.order[i] = place_of(best[i]);
  return has_nan;
}

bool order_by_pairs(const AblationArguments& arguments, const Row<float>& row, const float* bias,
                    const Workspace& work) {
  const SelectionOf<PairKeys>& pairs = work.pairs;
  const bool has_nan = write_sigmoid_keys(row, bias, pairs.keys);
  const int32_t bound = bound_for(pairs, row.size, arguments.rule.top_k);
  const int64_t count = write_candidates(pairs, row.size, arguments.rule.top_k, bound);
  order_candidates(pairs.unique, count, arguments.rule.top_k, work.order);
  return has_nan;
}

// --- rows -------------------------------------------------------------------------------------------------------------

void prefetch_ahead(const AblationArguments& arguments, int64_t token, int64_t end) {
  if (token + kRowsAhead >= end) return;
  const Row<float> ahead = row_of(arguments, token + kRowsAhead);
  for (int64_t i = 0; i < ahead.size; i += kFloatsALine) __builtin_prefetch(ahead.logits + i);
}

// All stages of one row before the next row.
template <auto order>
void gate_row_by_row(const AblationArguments& arguments, const float* bias, const Workspace& work, int64_t begin,
                     int64_t end) {
  const int64_t top_k = arguments.rule.top_k;
  fill(work.chosen, padded(top_k), 0.0f);
  for (int64_t token = begin; token < end; ++token) {
    if (arguments.prefetches) prefetch_ahead(arguments, token, end);
    const Row<float> row = row_of(arguments, token);
    const bool has_nan = order(arguments, row, bias, work);
    write_index(arguments, token, work.order);
    look_up(row, work.order, top_k, has_nan, work.chosen);
    write_row_weights(arguments, token, work.chosen, work.selection.unique);
  }
}

// One stage for all rows before the next stage.
void gate_stage_by_stage(const AblationArguments& arguments, const float* bias, const Stages& stages, int64_t begin,
                         int64_t end) {
  const int64_t size = arguments.num_experts, top_k = arguments.rule.top_k, num_rows = end - begin;
  for (int64_t i = 0; i < num_rows; ++i) {
    stages.has_nan[i] = write_sigmoid_keys(row_of(arguments, begin + i), bias, stages.of(i, size).keys);
  }
  for (int64_t i = 0; i < num_rows; ++i) stages.bound[i] = bound_for(stages.of(i, size), size, top_k);
  for (int64_t i = 0; i < num_rows; ++i) {
    stages.count[i] = write_candidates(stages.of(i, size), size, top_k, stages.bound[i]);
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    const Selection selection = stages.of(i, size);
    order_candidates(selection.unique, stages.count[i], top_k, selection.keys);
    write_index(arguments, begin + i, selection.keys);
  }
  fill(stages.chosen, num_rows * padded(top_k), 0.0f);
  for (int64_t i = 0; i < num_rows; ++i) {
    const Row<float> row = row_of(arguments, begin + i);
    look_up(row, stages.of(i, size).keys, top_k, stages.has_nan[i], stages.chosen + i * padded(top_k));
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    write_row_weights(arguments, begin + i, stages.chosen + i * padded(top_k), stages.of(i, size).unique);
  }
}

} // namespace

int64_t topk_gate_ablation_scratch(const AblationArguments& arguments, int64_t num_rows) {
  Pieces pieces(nullptr);
  next_bias(arguments, pieces);
  if (arguments.switched_off == Optimisation::blocking) next_stages(arguments, pieces, num_rows);
  else next_workspace(arguments, pieces);
  return pieces.taken();
}

// Exported, so that a profiler finds it by its name in a library without symbols.
[[gnu::visibility("default"), gnu::noinline]] void topk_gate_ablation_rows(
    const AblationArguments& arguments, void* scratch, int64_t begin, int64_t end) {
  Pieces pieces(scratch);
  float* bias = next_bias(arguments, pieces);
  std::memcpy(bias, arguments.bias, arguments.num_experts * sizeof(float));
  fill(bias + arguments.num_experts, padded(arguments.num_experts) - arguments.num_experts, 0.0f);
  if (arguments.switched_off == Optimisation::blocking) {
    return gate_stage_by_stage(arguments, bias, next_stages(arguments, pieces, end - begin), begin, end);
  }
  const Workspace work = next_workspace(arguments, pieces);
  switch (arguments.switched_off) {
    case Optimisation::tree_reduction:
      return gate_row_by_row<order_by_serial_reductions>(arguments, bias, work, begin, end);
    case Optimisation::branch_free:
      return gate_row_by_row<order_by_branches>(arguments, bias, work, begin, end);
    case Optimisation::structure_of_arrays:
      return gate_row_by_row<order_by_pairs>(arguments, bias, work, begin, end);
    default:
      return gate_row_by_row<order_as_the_gate>(arguments, bias, work, begin, end);
  }
}

} // namespace moegate::MOEGATE_ISA
