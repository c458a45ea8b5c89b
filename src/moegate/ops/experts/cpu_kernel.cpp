// A tile of a grouped product: panels of columns whose weights stay in the first cache while the rows go by.
#include "experts/cpu_kernel.h"

#include "experts/cpu_activation.h"
#include "experts/cpu_block.h"
#include "experts/cpu_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

// The sums of a tile's panel: of the only side, or of gate and up.
using Sums = float[2][kTileRows][kPanelColumns];

template <class Type>
class TileWalk {
 public:
  using Element = typename Type::Element;
  static constexpr int kBlockRows = Type::kBlockRows;
  static constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(Element));

  TileWalk(const Product& product, const Tile& tile, const Tile* next, void* scratch)
      : product_(product), tile_(tile), next_(next), sides_(sides_of(product)),
        copies_(product.length > kChunk && tile.rows >= kCopiedRows), panel_columns_(panel_columns(product)) {
    if (copies_) {
      copy_rows(static_cast<Element*>(scratch));
    } else {
      rows_ = static_cast<const Element*>(product.rows) + tile.row * product.row_stride;
      row_stride_ = product.row_stride;
      chunk_stride_ = kChunk;
    }
  }

  void run() {
    alignas(64) Sums sums;
    for (int64_t panel = 0; panel < tile_.columns; panel += panel_columns_) {
      for (int64_t side = 0; side < sides_; ++side) {
        // An empty reduction is one chunk too: sums of nothing are 0.
        int64_t chunk = 0;
        do {
          multiply(panel, side, chunk, sums[side]);
          chunk += kChunk;
        } while (chunk < product_.length);
      }
      finish(panel, sums);
    }
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // Weights a multiple of 4 KB apart fall into the same sets of the first cache: half a panel is what it holds then.
  static int64_t panel_columns(const Product& product) {
    const bool crowded = product.length > kChunk && product.column_stride * sizeof(Element) % 4096 == 0;
    return crowded ? kPanelColumns / 2 : kPanelColumns;
  }

  // Chunk by chunk, so that the rows of a chunk lie together.
  void copy_rows(Element* to) {
    rows_ = to;
    row_stride_ = kChunk;
    chunk_stride_ = tile_.rows * kChunk;
    for (int64_t row = 0; row < tile_.rows; ++row) {
      const Element* const from = static_cast<const Element*>(product_.rows) + (tile_.row + row) * product_.row_stride;
      for (int64_t chunk = 0, place = 0; chunk < product_.length; chunk += kChunk, place += chunk_stride_) {
        std::memcpy(
            to + place + row * kChunk, from + chunk,
            static_cast<size_t>(least(kChunk, product_.length - chunk)) * sizeof(Element));
      }
    }
  }

  // The same for a chunk of a panel's weights. 2 KB from each of several rows 4 KB apart would share half a cache.
  void copy_panel(Panel<Type>& panel) {
    for (int64_t column = 0; column < panel.columns; ++column) {
      std::memcpy(
          panel_ + column * kChunk, panel.weights + column * panel.column_stride,
          static_cast<size_t>(panel.length) * sizeof(Element));
    }
    panel.weights = panel_;
    panel.column_stride = kChunk;
  }

  const Element* weights(const Tile& tile, int64_t panel, int64_t side) const {
    return static_cast<const Element*>(product_.weights) + tile.expert * product_.expert_stride +
        (side * product_.columns + tile.column + panel) * product_.column_stride;
  }

  // The weights that are used after those of a panel's side; null at the end.
  const Element* weights_after(int64_t panel, int64_t side) const {
    if (side + 1 < sides_) return weights(tile_, panel, side + 1);
    if (panel + panel_columns_ < tile_.columns) return weights(tile_, panel + panel_columns_, 0);
    return next_ == nullptr ? nullptr : weights(*next_, 0, 0);
  }

  void multiply(int64_t panel, int64_t side, int64_t chunk, float (&sums)[kTileRows][kPanelColumns]) {
    const int64_t row_blocks = (tile_.rows + kBlockRows - 1) / kBlockRows;
    const int64_t columns = least(panel_columns_, tile_.columns - panel);
    const int64_t length = least(kChunk, product_.length - chunk);
    const Element* const after = weights_after(panel, side);
    const int64_t lines = after == nullptr ? 0 : columns * length * static_cast<int64_t>(sizeof(Element)) / kLineBytes;
    Panel<Type> work{
        rows_ + chunk / kChunk * chunk_stride_, weights(tile_, panel, side) + chunk,
        reinterpret_cast<const char*>(after) + chunk * columns * static_cast<int64_t>(sizeof(Element)),
        row_stride_, product_.column_stride, columns, length, 0, sums[0], chunk > 0};
    if (copies_) copy_panel(work);
    int64_t fetched = 0;
    for (int64_t block = 0; block < row_blocks; ++block) {
      work.ahead_lines = lines * (block + 1) / row_blocks - fetched;
      multiply_rows(work, least(kBlockRows, tile_.rows - block * kBlockRows));
      fetched += work.ahead_lines;
      work.ahead += work.ahead_lines * kLineBytes;
      work.rows += kBlockRows * row_stride_;
      work.sums += kBlockRows * kPanelColumns;
    }
  }

  static void multiply_rows(const Panel<Type>& panel, int64_t rows) {
    if (rows == kBlockRows) return multiply_rows<kBlockRows>(panel);
    if (rows == 1) return multiply_rows<1>(panel);
    if constexpr (kBlockRows > 3) {
      if (rows == 3) return multiply_rows<3>(panel);
    }
    return multiply_rows<2>(panel);
  }

  template <int Rows>
  static void multiply_rows(const Panel<Type>& panel) {
    const int64_t steps = (panel.columns + kBlockColumns - 1) / kBlockColumns * (panel.length / Type::kStep);
    if (panel.ahead_lines > 2 * steps) return multiply_panel<Type, Rows, 4>(panel);
    if (panel.ahead_lines > steps) return multiply_panel<Type, Rows, 2>(panel);
    return multiply_panel<Type, Rows, 1>(panel);
  }

  void finish(int64_t panel, const Sums& sums) const {
    for (int64_t row = 0; row < tile_.rows; ++row) {
      for (int64_t i = 0; i < panel_columns_ && panel + i < tile_.columns; i += kLanes) {
        const int64_t count = least(kLanes, least(panel_columns_ - i, tile_.columns - panel - i));
        finish(tile_.row + row, tile_.column + panel + i, count, &sums[0][row][i], &sums[1][row][i]);
      }
    }
  }

  void finish(int64_t row, int64_t column, int64_t count, const float* first_sums, const float* second_sums) const {
    const Vector first = load_vector(first_sums);
    const Vector second = sides_ == 2 ? load_vector(second_sums) : broadcast(1.0f);
    Type::store(
        static_cast<Element*>(product_.out) + row * product_.out_stride + column,
        product_.activates ? activate(product_.activation, first) * second : first, count);
    if (product_.before == nullptr) return;
    Element* const before = static_cast<Element*>(product_.before) + row * product_.before_stride + column;
    Type::store(before, first, count);
    if (sides_ == 2) Type::store(before + product_.columns, second, count);
  }

  const Product& product_;
  const Tile& tile_;
  const Tile* next_;
  const int64_t sides_;
  const bool copies_;
  const int64_t panel_columns_;
  const Element* rows_; // of the tile, or their copy
  int64_t row_stride_, chunk_stride_;
  alignas(64) Element panel_[kPanelColumns * kChunk];
};

} // namespace

void multiply_tile(const Product& product, const Tile& tile, const Tile* next, void* scratch) {
  if (product.bfloat16) {
    TileWalk<BFloat16>(product, tile, next, scratch).run();
  } else {
    TileWalk<Float32>(product, tile, next, scratch).run();
  }
}

} // namespace moegate::MOEGATE_ISA
