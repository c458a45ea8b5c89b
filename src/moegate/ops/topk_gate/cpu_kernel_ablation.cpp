// The gate of sigmoid, bias and renormalised weights, with each optimisation of topk_gate switched off alone: the
// stages are those of cpu_kernel_forward.cpp. All ways give the same bits.
#include "topk_gate/cpu_kernel_ablation.h"

#include "cpu/pieces.h"
#include "topk_gate/batches.h"
#include "topk_gate/pair_keys.h"
#include "topk_gate/ranking.h"
#include "topk_gate/serial_bound.h"
#include "topk_gate/weighing.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kFloatsALine = 16;

// A token on its way through the stages.
struct Passing {
  int64_t token;
  bool has_nan;
  int32_t bound;
  Few few;
};

// Memory for `batch` tokens at once.
struct Workspace {
  int64_t batch;
  int64_t stride;   // from one token's keys to the next one's
  int32_t* keys;    // [batch, stride]; the order of a token in the end
  Pair* pairs;      // [batch, stride], or null
  Passing* passing; // [batch]
  int64_t* unique;  // capacity + kLanes
  int64_t capacity;
  int32_t* maxima; // kMostMaxima
  Chosen chosen;   // of a batch
  float** weights; // [batch]
  float* bias;     // padded(E)
  int64_t size;    // in bytes
};

// As topk_gate does it; all of them where there is no blocking.
int64_t batch_of(const AblationArguments& arguments, int64_t num_rows) {
  if (arguments.switched_off == Optimisation::blocking) return num_rows;
  const bool in_batches = chooses_few(arguments.num_experts, arguments.rule.top_k);
  return in_batches ? tokens_of_a_batch(padded(arguments.num_experts) + kLanes) : 1;
}

Workspace workspace(const AblationArguments& arguments, void* memory, int64_t num_rows) {
  const bool has_pairs = arguments.switched_off == Optimisation::structure_of_arrays;
  Pieces pieces(memory);
  Workspace work{};
  work.batch = batch_of(arguments, num_rows);
  work.stride = padded(arguments.num_experts) + kLanes;
  work.keys = pieces.next<int32_t>(work.batch * work.stride);
  if (has_pairs) work.pairs = pieces.next<Pair>(work.batch * work.stride);
  work.passing = pieces.next<Passing>(work.batch);
  work.capacity = candidate_capacity(arguments.num_experts, arguments.rule.top_k);
  work.unique = pieces.next<int64_t>(work.capacity + kLanes);
  work.maxima = pieces.next<int32_t>(kMostMaxima);
  const int64_t width = whole_blocks(arguments.rule.top_k);
  work.chosen = {pieces.next<float>(work.batch * width), pieces.next<double>(work.batch * width),
                 pieces.next<Softmax>(work.batch)};
  work.weights = pieces.next<float*>(work.batch);
  work.bias = pieces.next<float>(padded(arguments.num_experts));
  work.size = pieces.taken();
  return work;
}

template <Optimisation off>
auto selection_of(const Workspace& work, int64_t i) {
  if constexpr (off == Optimisation::structure_of_arrays) {
    const PairKeys keys{work.pairs + i * work.stride, 0};
    return SelectionOf<PairKeys>{keys, work.unique, work.capacity, work.maxima};
  } else {
    return Selection{work.keys + i * work.stride, work.unique, work.capacity, work.maxima};
  }
}

Row<float> row_of(const AblationArguments& arguments, int64_t token) {
  return {arguments.logits + token * arguments.num_experts, arguments.num_experts};
}

// --- the stages -----------------------------------------------------------------------------------------------------

// Returns whether the row has a NaN.
template <Optimisation off>
bool write_sigmoid_keys(const Row<float>& row, const Workspace& work, int64_t i) {
  const auto keys = selection_of<off>(work, i).keys;
  const auto facts = write_keys_of(row, work.bias, keys, [](const auto& logits) MOEGATE_INLINED {
    return portable_sigmoid(logits);
  });
  return off == Optimisation::tree_reduction ? has_nan_serially(row) : facts.has_nan;
}

template <Optimisation off>
int32_t bound_for(const AblationArguments& arguments, const Workspace& work, int64_t i) {
  const int64_t size = arguments.num_experts, top_k = arguments.rule.top_k;
  if constexpr (off == Optimisation::tree_reduction) return bound_serially(selection_of<off>(work, i), size, top_k);
  else return bound_of(selection_of<off>(work, i), size, top_k);
}

// A sorted list of the k best so far, and a branch for each key.
void order_by_branches(int32_t* keys, int64_t size, int64_t top_k, int64_t* best) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t found = unique_key(keys[i], static_cast<int32_t>(i));
    if (count == top_k && found < best[top_k - 1]) continue;
    int64_t slot = count < top_k ? count++ : top_k - 1;
    for (; slot > 0 && best[slot - 1] < found; --slot) best[slot] = best[slot - 1];
    best[slot] = found;
  }
  for (int64_t i = 0; i < top_k; ++i) keys[i] = place_of(best[i]);
}

template <Optimisation off>
void order_one(const AblationArguments& arguments, const Workspace& work, int64_t i) {
  const int64_t size = arguments.num_experts, top_k = arguments.rule.top_k;
  int32_t* order = work.keys + i * work.stride;
  if constexpr (off == Optimisation::branch_free) return order_by_branches(order, size, top_k, work.unique);
  const auto selection = selection_of<off>(work, i);
  if (size <= kLanes) {
    store(order, load(selection.keys));
    return order_one_block(order, order);
  }
  const Passing& passing = work.passing[i];
  if (chooses_few(size, top_k) && passing.few.count <= kFew) return order_few(passing.few, order);
  const int64_t count = write_candidates(selection, size, top_k, passing.bound);
  order_candidates(work.unique, count, top_k, order);
}

void write_choice(const AblationArguments& arguments, const Workspace& work, int64_t i) {
  const int64_t top_k = arguments.rule.top_k;
  const Passing& passing = work.passing[i];
  const int32_t* order = work.keys + i * work.stride;
  for (int64_t k = 0; k < top_k; ++k) arguments.index[passing.token * top_k + k] = order[k];
  float* chosen = work.chosen.logits + i * whole_blocks(top_k);
  work.chosen.softmax[i] = {look_up(row_of(arguments, passing.token), order, top_k, passing.has_nan, chosen), 0.0};
  work.weights[i] = arguments.weights + passing.token * top_k;
}

template <Optimisation off>
void gate_batch(const AblationArguments& arguments, const Workspace& work, int64_t count) {
  const int64_t size = arguments.num_experts, top_k = arguments.rule.top_k;
  Passing* batch = work.passing;
  for (int64_t i = 0; i < count; ++i) {
    batch[i].has_nan = write_sigmoid_keys<off>(row_of(arguments, batch[i].token), work, i);
  }
  if (off != Optimisation::branch_free && size > kLanes) {
    for (int64_t i = 0; i < count; ++i) batch[i].bound = bound_for<off>(arguments, work, i);
    for (int64_t i = 0; chooses_few(size, top_k) && i < count; ++i) {
      gather_few(selection_of<off>(work, i).keys, padded(size), batch[i].bound, batch[i].few);
    }
  }
  for (int64_t i = 0; i < count; ++i) order_one<off>(arguments, work, i);
  for (int64_t i = 0; i < count; ++i) write_choice(arguments, work, i);
  weigh(arguments.rule, work.chosen, count, work.weights);
}

// --- rows -----------------------------------------------------------------------------------------------------------

// Asks for the rows of the next batch.
void prefetch(const AblationArguments& arguments, int64_t begin, int64_t end) {
  const float* last = arguments.logits + end * arguments.num_experts;
  for (const float* line = row_of(arguments, begin).logits; line < last; line += kFloatsALine) {
    __builtin_prefetch(line);
  }
}

template <Optimisation off>
void gate_rows(const AblationArguments& arguments, const Workspace& work, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += work.batch) {
    const int64_t next = first + work.batch < end ? first + work.batch : end;
    if (arguments.prefetches) prefetch(arguments, next, next + work.batch < end ? next + work.batch : end);
    for (int64_t token = first; token < next; ++token) work.passing[token - first].token = token;
    gate_batch<off>(arguments, work, next - first);
  }
}

} // namespace

int64_t topk_gate_ablation_scratch(const AblationArguments& arguments, int64_t num_rows) {
  return workspace(arguments, nullptr, num_rows).size;
}

// Exported, so that a profiler finds it by its name in a library without symbols.
[[gnu::visibility("default"), gnu::noinline]] void topk_gate_ablation_rows(
    const AblationArguments& arguments, void* scratch, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const Workspace work = workspace(arguments, scratch, end - begin);
  const int64_t num_experts = arguments.num_experts;
  std::memcpy(work.bias, arguments.bias, num_experts * sizeof(float));
  fill(work.bias + num_experts, padded(num_experts) - num_experts, 0.0f);
  switch (arguments.switched_off) {
    case Optimisation::tree_reduction:
      return gate_rows<Optimisation::tree_reduction>(arguments, work, begin, end);
    case Optimisation::branch_free:
      return gate_rows<Optimisation::branch_free>(arguments, work, begin, end);
    case Optimisation::structure_of_arrays:
      return gate_rows<Optimisation::structure_of_arrays>(arguments, work, begin, end);
    default: // blocking is the size of a batch
      return gate_rows<Optimisation::none>(arguments, work, begin, end);
  }
}

} // namespace moegate::MOEGATE_ISA
