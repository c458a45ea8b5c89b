// Products of sorted rows with the weights of their experts, with the activation applied on the way out.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace moegate {

enum class Activation : int64_t { swiglu = 0, geglu = 1, gelu = 2, relu2 = 3, relu = 4, silu = 5 };

// Internal linkage: what is compiled for one instruction set is never merged with the same for another.
static constexpr bool is_gated(Activation activation) {
  return activation == Activation::swiglu || activation == Activation::geglu;
}

// out[r, c] = sum over k of weights[e, c, k] · rows[r, k] for the rows r of expert e, or that activated. Gated: weights
// hold 2 · columns rows, gate first, and out[r, c] = act(gate) · up. All strides count elements; along k they are 1.
struct Product {
  const void* rows;
  const void* weights;
  void* out;
  void* before; // what the activation takes, [R, columns or 2 · columns], in the element type; or null
  int64_t row_stride, expert_stride, column_stride, out_stride, before_stride;
  int64_t length, columns;
  Activation activation;
  bool activates;
  bool bfloat16; // else float32
};

// The part of a product that is computed in one go: some rows of an expert, some columns.
struct Tile {
  int64_t expert, row, rows, column, columns;
};

constexpr int64_t kTileRows = 128;    // at most so many rows in a tile
constexpr int64_t kPanelColumns = 16; // at most so many columns share the first cache with the rows that go by
constexpr int64_t kChunkBytes = 2048; // of the reduction, of each row and column: a panel then fills 32 KB

static constexpr int64_t sides_of(const Product& product) {
  return product.activates && is_gated(product.activation) ? 2 : 1;
}

// What a thread needs for a copy of up to `rows` rows in chunks; a single chunk is not copied.
static constexpr int64_t scratch_bytes(const Product& product, int64_t rows) {
  const int64_t row_bytes = product.length * (product.bfloat16 ? 2 : 4);
  return row_bytes > kChunkBytes ? rows * ((row_bytes + kChunkBytes - 1) / kChunkBytes * kChunkBytes) : 0;
}

} // namespace moegate

// Computes a tile; `next` is the tile that the same thread takes afterwards, or null: its weights are fetched ahead.
// `scratch` holds scratch_bytes of the thread's own, aligned to 64.
MOEGATE_DECLARE_KERNEL(
    void, multiply_tile,
    (const ::moegate::Product& product, const ::moegate::Tile& tile, const ::moegate::Tile* next, void* scratch))
