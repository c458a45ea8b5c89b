// Which instruction set the kernels run on: chosen once by what the processor offers, or forced for tests.
#pragma once

#include <cstdint>

namespace moegate {

enum class Isa : int64_t { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// The instruction set in force. A relaxed read of one atomic: cheap enough for every call.
Isa current_isa();

} // namespace moegate

// A kernel is declared once and exists once for each instruction set it was compiled for, each in a namespace of its
// own: MOEGATE_DECLARE_KERNEL(void, sum_rows, (const float* values, int64_t begin, int64_t end));
// MOEGATE_SELECT_KERNEL(sum_rows) is a pointer to the one for the current instruction set.
#if defined(__x86_64__) || defined(_M_X64)
#define MOEGATE_DECLARE_KERNEL(result, name, parameters) \
  namespace moegate::scalar { result name parameters; }       \
  namespace moegate::avx2 { result name parameters; }         \
  namespace moegate::avx512 { result name parameters; }       \
  namespace moegate::avx512_bf16 { result name parameters; }
#define MOEGATE_SELECT_KERNEL(name)                                        \
  (::moegate::current_isa() == ::moegate::Isa::avx512_bf16                 \
       ? &::moegate::avx512_bf16::name                                     \
       : ::moegate::current_isa() == ::moegate::Isa::avx512                \
           ? &::moegate::avx512::name                                      \
           : ::moegate::current_isa() == ::moegate::Isa::avx2 ? &::moegate::avx2::name : &::moegate::scalar::name)
#else
#define MOEGATE_DECLARE_KERNEL(result, name, parameters) \
  namespace moegate::scalar { result name parameters; }
#define MOEGATE_SELECT_KERNEL(name) (&::moegate::scalar::name)
#endif
