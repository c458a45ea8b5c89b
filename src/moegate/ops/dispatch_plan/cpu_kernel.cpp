#include "dispatch_plan/cpu_kernel.h"

namespace moegate::MOEGATE_ISA {
namespace {

// visit(slot, expert) for the slots of tokens [begin, end) in order, until it returns false.
template <class Index, class Visit>
inline void each_slot(const PlanArguments& a, int64_t begin, int64_t end, const Visit& visit) {
  const Index* index = static_cast<const Index*>(a.index);
  if (a.slot_stride == 1 && a.token_stride == a.top_k) {
    for (int64_t n = begin * a.top_k; n < end * a.top_k; ++n) {
      if (!visit(n, static_cast<int64_t>(index[n]))) return;
    }
    return;
  }
  for (int64_t token = begin; token < end; ++token) {
    const Index* row = index + token * a.token_stride;
    for (int64_t k = 0; k < a.top_k; ++k) {
      if (!visit(token * a.top_k + k, static_cast<int64_t>(row[k * a.slot_stride]))) return;
    }
  }
}

template <class Index>
int64_t count(const PlanArguments& a, int64_t begin, int64_t end, int64_t* counts) {
  int64_t wrong = -1;
  each_slot<Index>(a, begin, end, [&](int64_t n, int64_t expert) {
    // One comparison for both ends: what is below -1 becomes a huge number.
    if (static_cast<uint64_t>(expert) + 1 > static_cast<uint64_t>(a.num_experts)) [[unlikely]] {
      wrong = n;
      return false;
    }
    ++counts[expert + 1];
    return true;
  });
  return wrong;
}

template <class Index, bool kLimited>
void place(const PlanArguments& a, int64_t begin, int64_t end, int64_t* next) {
  each_slot<Index>(a, begin, end, [&](int64_t n, int64_t expert) {
    if (expert < 0) {
      a.inverse[n] = -1;
      return true;
    }
    const int64_t row = next[expert + 1];
    if constexpr (kLimited) {
      if (row >= a.limit[expert]) {
        a.inverse[n] = -1;
        return true;
      }
    }
    next[expert + 1] = row + 1;
    a.slot[row] = n;
    a.inverse[n] = row;
    return true;
  });
}

} // namespace

int64_t count_slots(const PlanArguments& arguments, int64_t begin, int64_t end, int64_t* counts) {
  return arguments.index_is_int32 ? count<int32_t>(arguments, begin, end, counts)
                                  : count<int64_t>(arguments, begin, end, counts);
}

void place_slots(const PlanArguments& arguments, int64_t begin, int64_t end, int64_t* next) {
  if (arguments.limit != nullptr) {
    arguments.index_is_int32 ? place<int32_t, true>(arguments, begin, end, next)
                             : place<int64_t, true>(arguments, begin, end, next);
  } else {
    arguments.index_is_int32 ? place<int32_t, false>(arguments, begin, end, next)
                             : place<int64_t, false>(arguments, begin, end, next);
  }
}

} // namespace moegate::MOEGATE_ISA
