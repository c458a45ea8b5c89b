// dispatch_plan on the CPU: count, add up, place. Every chunk of tokens counts for itself, so that all of them know
// where to place their slots; the result does not depend on how many chunks there are.
#include "dispatch_plan/cpu_operator.h"

#include "cpu/check.h"
#include "cpu/new_tensor.h"
#include "dispatch_plan/cpu_kernel.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace moegate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostExperts = int64_t{1} << 24;
constexpr int64_t kMostAligned = int64_t{1} << 20;
constexpr int64_t kMostRows = int64_t{1} << 48;
constexpr int64_t kSlotsPerChunk = 8192; // below it a second thread costs more than it brings

struct Options {
  int64_t alignment;
  int64_t capacity; // -1: none
  bool fill; // every expert has exactly `capacity` rows
  bool trim; // no rows behind the last expert
};

void check_arguments(const Tensor& index, int64_t num_experts, const Options& options) {
  check_dim("index", index, 2);
  check(
      index.scalar_type() == ScalarType::Long || index.scalar_type() == ScalarType::Int,
      "index must be int32 or int64, got ", torch::headeronly::toString(index.scalar_type()), ".");
  check(
      num_experts >= 1 && num_experts <= kMostExperts, "num_experts=", num_experts, " must be from 1 to ",
      kMostExperts, ".");
  check(
      options.alignment >= 1 && options.alignment <= kMostAligned, "alignment=", options.alignment,
      " must be from 1 to ", kMostAligned, ".");
  check(options.capacity >= -1, "capacity=", options.capacity, " must be at least 0, or -1 for none.");
  check(!options.fill || options.capacity >= 0, "To fill every expert's rows takes a capacity.");
  check(
      !options.fill || options.capacity <= kMostRows / num_experts, "capacity=", options.capacity, " for each of ",
      num_experts, " experts are too many rows.");
}

int64_t aligned(int64_t rows, int64_t alignment) { return (rows + alignment - 1) / alignment * alignment; }

// Rows that hold every outcome: what a compiled program allocates before it knows the counts.
int64_t most_rows(int64_t num_slots, int64_t num_experts, const Options& options) {
  if (options.fill) return num_experts * options.capacity;
  const int64_t used_experts = std::min(num_experts, num_slots);
  return num_slots + used_experts * (options.alignment - 1);
}

// Counts of slots for each chunk of tokens: [chunks, E + 1], then the places that each chunk goes on from.
class Chunks {
 public:
  // Chunks lie two cache lines apart: threads that write to one line wait for each other.
  Chunks(int64_t num_tokens, int64_t num_slots, int64_t num_experts)
      : num_tokens_(num_tokens), width_(aligned(num_experts + 1, 16) + 16) {
    const int64_t worth = num_slots / std::max(kSlotsPerChunk, num_experts);
    count_ = worth < 2 ? 1 : std::min<int64_t>({worth, torch::stable::get_num_threads(), num_tokens});
    values_.assign(count_ * width_, 0);
    wrong_.assign(count_, -1);
  }

  template <class Visit>
  void each(const Visit& visit) {
    if (count_ == 1) return visit(0, 0, num_tokens_);
    torch::stable::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visit(i, num_tokens_ * i / count_, num_tokens_ * (i + 1) / count_);
    });
  }

  int64_t count() const { return count_; }
  int64_t* of(int64_t chunk) { return values_.data() + chunk * width_; }
  int64_t& wrong(int64_t chunk) { return wrong_[chunk]; }

  // The first slot without an expert number, or -1.
  int64_t first_wrong() const {
    for (const int64_t slot : wrong_) {
      if (slot >= 0) return slot;
    }
    return -1;
  }

 private:
  int64_t num_tokens_;
  int64_t width_;
  int64_t count_;
  std::vector<int64_t> values_;
  std::vector<int64_t> wrong_;
};

// What an expert's rows are: real ones, then padding.
struct Segments {
  int64_t* counts;
  int64_t* offsets;
  std::vector<int64_t> limit; // empty without a capacity
  int64_t used = 0; // rows that hold a slot
};

// Turns counts into places and returns the number of rows.
int64_t add_up(Chunks& chunks, int64_t num_experts, const Options& options, Segments& segments) {
  if (options.capacity >= 0) segments.limit.resize(num_experts);
  int64_t end = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    int64_t next = end;
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      int64_t& value = chunks.of(chunk)[expert + 1];
      const int64_t count = value;
      value = next;
      next += count;
    }
    int64_t count = next - end;
    if (options.capacity >= 0) {
      count = std::min(count, options.capacity);
      segments.limit[expert] = end + count;
    }
    segments.counts[expert] = count;
    segments.used += count;
    end += options.fill ? options.capacity : options.alignment == 1 ? count : aligned(count, options.alignment);
    segments.offsets[expert] = end;
  }
  return end;
}

// Rows between an expert's last and the next one's first, and those behind all experts, hold no slot.
void mark_padding(const Segments& segments, int64_t num_experts, int64_t* slot, int64_t num_rows) {
  if (segments.used == num_rows) return;
  int64_t start = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    std::fill(slot + start + segments.counts[expert], slot + segments.offsets[expert], -1);
    start = segments.offsets[expert];
  }
  std::fill(slot + start, slot + num_rows, -1);
}

[[noreturn]] void fail_at(const PlanArguments& arguments, int64_t slot) {
  const int64_t token = slot / arguments.top_k;
  const int64_t k = slot % arguments.top_k;
  const int64_t at = token * arguments.token_stride + k * arguments.slot_stride;
  const int64_t expert = arguments.index_is_int32 ? static_cast<const int32_t*>(arguments.index)[at]
                                                  : static_cast<const int64_t*>(arguments.index)[at];
  fail(
      "index[", token, ", ", k, "] is ", expert, ": an expert is a number from 0 to ", arguments.num_experts - 1,
      ", an empty slot is -1.");
}

} // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> dispatch_plan(
    Tensor index, int64_t num_experts, int64_t alignment, int64_t capacity, bool fill, bool trim) {
  const Options options{alignment, capacity, fill, trim};
  check_arguments(index, num_experts, options);
  const int64_t num_tokens = index.size(0);
  const int64_t top_k = index.size(1);
  const int64_t num_slots = num_tokens * top_k;
  const int64_t most = most_rows(num_slots, num_experts, options);
  PlanArguments arguments{};
  arguments.index = index.const_data_ptr();
  arguments.index_is_int32 = index.scalar_type() == ScalarType::Int;
  arguments.token_stride = index.stride(0);
  arguments.slot_stride = index.stride(1);
  arguments.top_k = top_k;
  arguments.num_experts = num_experts;

  // First of all: a huge expanded index has no place for its outcome, which shows at once, and is not read in days.
  Tensor inverse = new_tensor({num_tokens, top_k}, ScalarType::Long);
  Chunks chunks(num_tokens, num_slots, num_experts);
  const auto count = MOEGATE_SELECT_KERNEL(count_slots);
  chunks.each([&](int64_t chunk, int64_t begin, int64_t end) {
    chunks.wrong(chunk) = count(arguments, begin, end, chunks.of(chunk));
  });
  if (const int64_t wrong = chunks.first_wrong(); wrong >= 0) fail_at(arguments, wrong);

  Tensor counts = new_tensor({num_experts}, ScalarType::Long);
  Tensor offsets = new_tensor({num_experts}, ScalarType::Long);
  Segments segments{
      static_cast<int64_t*>(counts.mutable_data_ptr()), static_cast<int64_t*>(offsets.mutable_data_ptr()), {}, 0};
  const int64_t used_rows = add_up(chunks, num_experts, options, segments);
  const int64_t num_rows = trim ? used_rows : most;
  Tensor slot = new_tensor({num_rows}, ScalarType::Long);
  arguments.limit = capacity >= 0 ? segments.limit.data() : nullptr;
  arguments.slot = static_cast<int64_t*>(slot.mutable_data_ptr());
  arguments.inverse = static_cast<int64_t*>(inverse.mutable_data_ptr());
  mark_padding(segments, num_experts, arguments.slot, num_rows);
  const auto place = MOEGATE_SELECT_KERNEL(place_slots);
  chunks.each([&](int64_t chunk, int64_t begin, int64_t end) { place(arguments, begin, end, chunks.of(chunk)); });
  return {counts, offsets, slot, inverse};
}

} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) { m.impl("dispatch_plan", TORCH_BOX(&moegate::dispatch_plan)); }
