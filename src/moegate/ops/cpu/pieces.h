// Scratch memory for several arrays.
#pragma once

#include <cstdint>

namespace moegate::MOEGATE_ISA {
namespace {

// Scratch memory is cut into pieces that start at multiples of 64 bytes.
class Pieces {
 public:
  explicit Pieces(void* memory) : start_(static_cast<char*>(memory)) {}

  template <class Number>
  Number* next(int64_t count) {
    char* piece = start_ == nullptr ? nullptr : start_ + taken_;
    taken_ += (count * static_cast<int64_t>(sizeof(Number)) + 63) / 64 * 64;
    return reinterpret_cast<Number*>(piece);
  }
  int64_t taken() const { return taken_; }

 private:
  char* start_;
  int64_t taken_ = 0;
};

} // namespace
} // namespace moegate::MOEGATE_ISA
