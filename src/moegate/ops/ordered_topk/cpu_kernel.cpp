#include "ordered_topk/cpu_kernel.h"

#include "cpu/logit_rows.h"
#include "cpu/pieces.h"
#include "cpu/selection.h"

namespace moegate::MOEGATE_ISA {
namespace {

struct TopKWorkspace {
  Selection selection;
  float* row; // padded(N), where the values of a row are not contiguous
  int64_t size;
};

TopKWorkspace topk_workspace(const TopKArguments& arguments, void* memory) {
  Pieces pieces(memory);
  TopKWorkspace work{};
  const int64_t capacity = candidate_capacity(arguments.row_size, arguments.k);
  int32_t* keys = pieces.next<int32_t>(padded(arguments.row_size));
  int64_t* unique = pieces.next<int64_t>(capacity + kLanes);
  work.selection = {keys, unique, capacity, pieces.next<int32_t>(kMostMaxima)};
  if (arguments.element_stride != 1) work.row = pieces.next<float>(padded(arguments.row_size));
  work.size = pieces.taken();
  return work;
}

template <class Element>
void write_value_keys(const Row<Element>& row, int32_t* keys) {
  each_block(row, [&](int64_t first, const auto& blocks, int64_t count) MOEGATE_INLINED {
    one_by_one(first, blocks, [&](int64_t i, Floats values) MOEGATE_INLINED {
      store(keys + i, excluded_past(count, sort_keys(values)));
    });
  });
}

template <class Element>
void write_row_keys(const TopKArguments& arguments, const Element* values, const TopKWorkspace& work) {
  const int64_t size = arguments.row_size;
  if (arguments.element_stride == 1) return write_value_keys(Row<Element>{values, size}, work.selection.keys);
  for (int64_t i = 0; i < size; ++i) work.row[i] = to_float(values[i * arguments.element_stride]);
  write_value_keys(Row<float>{work.row, size}, work.selection.keys);
}

void write_row_keys(const TopKArguments& arguments, const int32_t* values, const TopKWorkspace& work) {
  const int64_t size = arguments.row_size;
  int32_t* keys = work.selection.keys;
  for (int64_t i = 0; i < size; ++i) keys[i] = values[i * arguments.element_stride];
  for (int64_t i = size; i < padded(size); ++i) keys[i] = INT32_MIN;
}

const int32_t* select(const TopKArguments& arguments, const Selection& selection) {
  // Only keys that were made from floats leave the least integer free.
  return arguments.element == TopKElement::int32_key
      ? select_among_many(selection, arguments.row_size, arguments.k)
      : select_greatest(selection, arguments.row_size, arguments.k);
}

template <class Element>
void topk_rows(const TopKArguments& arguments, const TopKWorkspace& work, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    write_row_keys(arguments, static_cast<const Element*>(arguments.values) + i * arguments.row_stride, work);
    if (arguments.excluded != nullptr) {
      const uint8_t* excluded = arguments.excluded + i * arguments.excluded_row_stride;
      for (int64_t j = 0; j < arguments.row_size; ++j) {
        if (excluded[j * arguments.excluded_element_stride] != 0) work.selection.keys[j] = kExcludedKey;
      }
    }
    const int32_t* order = select(arguments, work.selection);
    for (int64_t j = 0; j < arguments.k; ++j) arguments.index[i * arguments.k + j] = order[j];
  }
}

} // namespace

int64_t ordered_topk_scratch(const TopKArguments& arguments) { return topk_workspace(arguments, nullptr).size; }

void ordered_topk_rows(const TopKArguments& arguments, void* scratch, int64_t begin, int64_t end) {
  const TopKWorkspace work = topk_workspace(arguments, scratch);
  switch (arguments.element) {
    case TopKElement::float32:
      return topk_rows<float>(arguments, work, begin, end);
    case TopKElement::bfloat16:
      return topk_rows<BFloat16>(arguments, work, begin, end);
    case TopKElement::float16:
      return topk_rows<Half>(arguments, work, begin, end);
    case TopKElement::int32_key:
      return topk_rows<int32_t>(arguments, work, begin, end);
  }
}

} // namespace moegate::MOEGATE_ISA
