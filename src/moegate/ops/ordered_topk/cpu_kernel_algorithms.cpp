#include "ordered_topk/cpu_kernel_algorithms.h"

#include <cstring>

// No algorithm of the standard library here: an inline template that is compiled for one instruction set could be
// merged by the linker into code that runs on an older processor.

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kInsertionLimit = 16; // below it, insertion beats partitioning

// The order of the contract as an unsigned integer, the index below it so that no two keys of a row are alike.
inline uint64_t key_of(float value, int64_t index) {
  const float canonical = value + 0.0f; // turns -0.0 into +0.0
  int32_t bits;
  std::memcpy(&bits, &canonical, sizeof bits);
  int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
  if (value != value) ordered = INT32_MIN + 1; // NaN ranks after -inf
  const uint64_t high = static_cast<uint32_t>(ordered) ^ 0x80000000u;
  return (high << 32) | static_cast<uint32_t>(~static_cast<uint32_t>(index));
}

inline int64_t index_of(uint64_t key) { return static_cast<int64_t>(static_cast<uint32_t>(~key)); }

inline void swap(uint64_t& a, uint64_t& b) {
  const uint64_t kept = a;
  a = b;
  b = kept;
}

void insertion_sort(uint64_t* keys, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const uint64_t key = keys[i];
    int64_t place = i;
    for (; place > 0 && keys[place - 1] < key; --place) keys[place] = keys[place - 1];
    keys[place] = key;
  }
}

// A heap with its least key at the root: the root is what a better key replaces.
void sift_down(uint64_t* heap, int64_t count, int64_t place, uint64_t key) {
  for (int64_t child = 2 * place + 1; child < count; child = 2 * place + 1) {
    if (child + 1 < count && heap[child + 1] < heap[child]) ++child;
    if (heap[child] >= key) break;
    heap[place] = heap[child];
    place = child;
  }
  heap[place] = key;
}

void make_heap(uint64_t* heap, int64_t count) {
  for (int64_t place = count / 2 - 1; place >= 0; --place) sift_down(heap, count, place, heap[place]);
}

// Taking the least key to the end, again and again, leaves the keys in descending order.
void sort_heap(uint64_t* heap, int64_t count) {
  for (int64_t last = count - 1; last > 0; --last) {
    const uint64_t key = heap[last];
    heap[last] = heap[0];
    sift_down(heap, last, 0, key);
  }
}

int64_t depth_limit(int64_t count) {
  int64_t depth = 0;
  for (; count > 1; count >>= 1) depth += 2;
  return depth;
}

// Hoare's partition around the median of three: returns m with keys[..m] >= keys[m+1..], both sides not empty.
int64_t partition(uint64_t* keys, int64_t count) {
  uint64_t* middle = keys + (count - 1) / 2;
  uint64_t* last = keys + count - 1;
  if (*middle > *keys) swap(*middle, *keys);
  if (*last > *keys) swap(*last, *keys);
  if (*last > *middle) swap(*last, *middle);
  const uint64_t pivot = *middle;
  int64_t left = 0, right = count - 1;
  for (;;) {
    while (keys[left] > pivot) ++left;
    while (keys[right] < pivot) --right;
    if (left >= right) return right;
    swap(keys[left++], keys[right--]);
  }
}

// Introsort: quicksort on the smaller side first, insertion for short runs, a heap where pivots keep failing.
void sort_descending(uint64_t* keys, int64_t count, int64_t depth) {
  while (count > kInsertionLimit) {
    if (depth-- == 0) {
      make_heap(keys, count);
      sort_heap(keys, count);
      return;
    }
    const int64_t upper = partition(keys, count) + 1;
    if (upper < count - upper) {
      sort_descending(keys, upper, depth);
      keys += upper;
      count -= upper;
    } else {
      sort_descending(keys + upper, count - upper, depth);
      count = upper;
    }
  }
  insertion_sort(keys, count);
}

void sort_descending(uint64_t* keys, int64_t count) { sort_descending(keys, count, depth_limit(count)); }

// Moves the k greatest keys to the front, in any order: quickselect, a heap of k where pivots keep failing.
void select_greatest(uint64_t* keys, int64_t count, int64_t k) {
  for (int64_t depth = depth_limit(count); count > kInsertionLimit; --depth) {
    if (depth == 0) {
      make_heap(keys, k);
      for (int64_t i = k; i < count; ++i) {
        if (keys[i] <= keys[0]) continue;
        const uint64_t key = keys[i];
        keys[i] = keys[0];
        sift_down(keys, k, 0, key);
      }
      return;
    }
    const int64_t upper = partition(keys, count) + 1;
    if (upper == k) return;
    if (upper > k) {
      count = upper;
    } else {
      keys += upper;
      count -= upper;
      k -= upper;
    }
  }
  insertion_sort(keys, count);
}

inline void make_keys(const float* values, int64_t begin, int64_t count, uint64_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = key_of(values[begin + i], begin + i);
}

const uint64_t* full_sort(const float* values, int64_t num_elements, uint64_t* scratch) {
  make_keys(values, 0, num_elements, scratch);
  sort_descending(scratch, num_elements);
  return scratch;
}

const uint64_t* heap(const float* values, int64_t num_elements, int64_t k, uint64_t* scratch) {
  make_keys(values, 0, k, scratch);
  make_heap(scratch, k);
  for (int64_t i = k; i < num_elements; ++i) {
    const uint64_t key = key_of(values[i], i);
    if (key > scratch[0]) sift_down(scratch, k, 0, key);
  }
  sort_heap(scratch, k);
  return scratch;
}

const uint64_t* quickselect(const float* values, int64_t num_elements, int64_t k, uint64_t* scratch) {
  make_keys(values, 0, num_elements, scratch);
  if (k < num_elements) select_greatest(scratch, num_elements, k);
  sort_descending(scratch, k);
  return scratch;
}

// The k greatest of two descending lists, in descending order; returns how many there are.
int64_t merge(const uint64_t* a, int64_t a_count, const uint64_t* b, int64_t b_count, int64_t k, uint64_t* merged) {
  int64_t i = 0, j = 0, count = 0;
  for (; count < k && i < a_count && j < b_count; ++count) {
    const bool first = a[i] > b[j];
    merged[count] = first ? a[i] : b[j];
    i += first;
    j += !first;
  }
  for (; count < k && i < a_count; ++count) merged[count] = a[i++];
  for (; count < k && j < b_count; ++count) merged[count] = b[j++];
  return count;
}

// Each block is read once, while it is close: what beats the k-th best so far is kept, sorted and merged.
const uint64_t* blocked(const float* values, int64_t num_elements, int64_t k, uint64_t* scratch) {
  uint64_t* block = scratch;
  uint64_t* best = scratch + kBlockSize;
  uint64_t* merged = best + k;
  int64_t found = 0;
  for (int64_t begin = 0; begin < num_elements; begin += kBlockSize) {
    const int64_t size = num_elements - begin < kBlockSize ? num_elements - begin : kBlockSize;
    make_keys(values, begin, size, block);
    const uint64_t threshold = found < k ? 0 : best[k - 1];
    int64_t candidates = 0;
    for (int64_t i = 0; i < size; ++i) {
      const uint64_t key = block[i];
      block[candidates] = key;
      candidates += key > threshold; // no branch to mispredict
    }
    if (candidates == 0) continue;
    if (candidates > k) {
      select_greatest(block, candidates, k);
      candidates = k;
    }
    sort_descending(block, candidates);
    found = merge(best, found, block, candidates, k, merged);
    uint64_t* kept = best;
    best = merged;
    merged = kept;
  }
  return best;
}

const uint64_t* find(const StudyArguments& arguments, const float* values, uint64_t* scratch) {
  switch (arguments.algorithm) {
    case Algorithm::full_sort: return full_sort(values, arguments.num_elements, scratch);
    case Algorithm::heap: return heap(values, arguments.num_elements, arguments.k, scratch);
    case Algorithm::quickselect: return quickselect(values, arguments.num_elements, arguments.k, scratch);
    default: return blocked(values, arguments.num_elements, arguments.k, scratch);
  }
}

} // namespace

void topk_by_algorithm(const StudyArguments& arguments, uint64_t* scratch, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t* keys = find(arguments, arguments.values + row * arguments.num_elements, scratch);
    int64_t* index = arguments.index + row * arguments.k;
    for (int64_t slot = 0; slot < arguments.k; ++slot) index[slot] = index_of(keys[slot]);
  }
}

} // namespace moegate::MOEGATE_ISA
