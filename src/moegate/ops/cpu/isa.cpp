#include "cpu/isa.h"

#include "cpu/check.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>


namespace moegate {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16"};

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa isa_named(const std::string& name) {
  for (int64_t i = 0; i < 4; ++i) {
    if (name == kNames[i]) {
      check(
          i <= static_cast<int64_t>(best_isa()), "This processor has no ", name, ": the best it offers is ",
          kNames[static_cast<int64_t>(best_isa())], ".");
      return static_cast<Isa>(i);
    }
  }
  fail("No instruction set is called '", name, "': choose scalar, avx2, avx512 or avx512_bf16.");
}

std::atomic<int64_t>& state() {
  static std::atomic<int64_t> value{static_cast<int64_t>(best_isa())};
  return value;
}

std::string cpu_isa() { return kNames[static_cast<int64_t>(current_isa())]; }

// An empty name goes back to the best.
void set_cpu_isa(std::string name) {
  state().store(static_cast<int64_t>(name.empty() ? best_isa() : isa_named(name)), std::memory_order_relaxed);
}

} // namespace

Isa current_isa() { return static_cast<Isa>(state().load(std::memory_order_relaxed)); }

} // namespace moegate

STABLE_TORCH_LIBRARY_FRAGMENT(moegate, m) {
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(moegate, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&moegate::cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&moegate::set_cpu_isa));
}
