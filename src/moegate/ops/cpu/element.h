// The types of elements that kernels over rows are made for.
#pragma once

#include <cstdint>

namespace moegate {

enum class Element : int64_t { float32, float64, bfloat16, float16 };

} // namespace moegate
