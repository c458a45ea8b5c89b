// A tile of a grouped product: panels of columns whose weights stay in the first cache while the rows go by.
#include "experts/cpu_kernel.h"

#include "experts/cpu_activation.h"
#include "experts/cpu_block.h"
#include "experts/cpu_vector.h"

namespace moegate::MOEGATE_ISA {
namespace {

constexpr int64_t kFewRows = 16;         // up to here a tile waits for memory, above for multiplications
constexpr int64_t kFewCrowdedRows = 8;   // the same where the weights crowd the cache
constexpr int64_t kFewPanelBytes = 8192; // of weights, whole columns: as far as is fetched ahead for few rows

// The sums of the columns that are finished together, of the only side or of gate and up.
using Sums = float[2][kTileRows * kPanelColumns];

// Goes over a tile: groups of columns that are finished together; in a group gate, then up; in those panels of columns;
// in a panel chunks of the reduction; in a chunk blocks of rows. Few rows take large groups of small panels, to read
// the weights as one stream. Many rows take panels that stay in the first cache until all rows went by.
template <class Type>
class TileWalk {
 public:
  using Element = typename Type::Element;
  static constexpr int kBlockRows = Type::kBlockRows;
  static constexpr int64_t kChunk = Type::kChunk;
  static constexpr int64_t kElementBytes = sizeof(Element);

  TileWalk(const Product& product, const Tile& tile, const Tile* next, void* scratch)
      : product_(product), tile_(tile), next_(next), sides_(sides_of(product)) {
    // Columns a multiple of 4 KB apart fall into the same sets of the first cache, and their chunks into half of it.
    const bool crowded = product.length > kChunk && product.column_stride * kElementBytes % 4096 == 0;
    few_ = tile.rows <= (crowded ? kFewCrowdedRows : kFewRows);
    copies_panels_ = crowded && !few_;
    panel_columns_ = crowded ? kPanelColumns / 2 : kPanelColumns;
    group_columns_ = kPanelColumns;
    sums_stride_ = kPanelColumns;
    if (few_) {
      const int64_t fitting = product.length == 0 ? kPanelColumns : kFewPanelBytes / (product.length * kElementBytes);
      panel_columns_ = fitting < 2 ? 2 : least(fitting / 2 * 2, kPanelColumns);
      // A block writes up to two columns past the last one.
      sums_stride_ = kTileRows * kPanelColumns / ((tile.rows + kBlockRows - 1) / kBlockRows * kBlockRows);
      group_columns_ = (sums_stride_ - kBlockColumns) / kPanelColumns * kPanelColumns;
    }
    take_rows(static_cast<Element*>(scratch));
  }

  void run() {
    alignas(64) Sums sums;
    for (int64_t group = 0; group < tile_.columns; group += group_columns_) {
      const int64_t end = least(group + group_columns_, tile_.columns);
      for (int64_t side = 0; side < sides_; ++side) {
        for (int64_t panel = group; panel < end; panel += panel_columns_) {
          // An empty reduction is one chunk too: sums of nothing are 0.
          int64_t chunk = 0;
          do {
            multiply(panel, end, side, chunk, sums[side] + panel - group);
            chunk += kChunk;
          } while (chunk < product_.length);
        }
      }
      finish(group, end, sums);
    }
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // Rows of several chunks are copied chunk by chunk, so that the rows of a chunk lie together.
  void take_rows(Element* copy) {
    const Element* const first = static_cast<const Element*>(product_.rows) + tile_.row * product_.row_stride;
    rows_ = first;
    row_stride_ = product_.row_stride;
    chunk_stride_ = kChunk;
    if (product_.length <= kChunk || tile_.rows == 1) return;
    rows_ = copy;
    row_stride_ = kChunk;
    chunk_stride_ = tile_.rows * kChunk;
    for (int64_t row = 0; row < tile_.rows; ++row) {
      for (int64_t chunk = 0, place = row * kChunk; chunk < product_.length; chunk += kChunk, place += chunk_stride_) {
        std::memcpy(
            copy + place, first + row * product_.row_stride + chunk,
            static_cast<size_t>(least(kChunk, product_.length - chunk) * kElementBytes));
      }
    }
  }

  const Element* weights(const Tile& tile, int64_t panel, int64_t side) const {
    return static_cast<const Element*>(product_.weights) + tile.expert * product_.expert_stride +
        (side * product_.columns + tile.column + panel) * product_.column_stride;
  }

  // The weights that are used after those of a panel's side; null at the end.
  const Element* weights_after(int64_t panel, int64_t end, int64_t side) const {
    if (panel + panel_columns_ < end) return weights(tile_, panel + panel_columns_, side);
    if (side + 1 < sides_) return weights(tile_, (end - 1) / group_columns_ * group_columns_, side + 1);
    if (end < tile_.columns) return weights(tile_, end, 0);
    return next_ == nullptr ? nullptr : weights(*next_, 0, 0);
  }

  void multiply(int64_t panel, int64_t end, int64_t side, int64_t chunk, float* sums) {
    const int64_t row_blocks = (tile_.rows + kBlockRows - 1) / kBlockRows;
    const int64_t columns = least(panel_columns_, end - panel);
    const int64_t length = least(kChunk, product_.length - chunk);
    const Element* const after = weights_after(panel, end, side);
    const int64_t lines = after == nullptr ? 0 : columns * length * kElementBytes / kLineBytes;
    Panel<Type> work{
        rows_ + chunk / kChunk * chunk_stride_, weights(tile_, panel, side) + chunk, panel_,
        reinterpret_cast<const char*>(after) + chunk * columns * kElementBytes, row_stride_, product_.column_stride,
        columns, length, 0, sums, sums_stride_, chunk > 0};
    const int64_t steps = (columns + kBlockColumns - 1) / kBlockColumns * (length / Type::kStep);
    int64_t fetched = 0;
    for (int64_t block = 0; block < row_blocks; ++block) {
      const int64_t rows = least(kBlockRows, tile_.rows - block * kBlockRows);
      work.ahead_lines = lines * (block + 1) / row_blocks - fetched;
      if (copies_panels_ && block == 0) {
        work.ahead_lines = least(work.ahead_lines, steps);
        multiply_panel<Type, kBlockRows, Besides<1, 2, true>>(work);
        work.weights = panel_;
        work.column_stride = kChunk;
      } else {
        multiply_rows(work, rows, steps);
      }
      fetched += work.ahead_lines;
      work.ahead += work.ahead_lines * kLineBytes;
      work.rows += kBlockRows * row_stride_;
      work.sums += kBlockRows * sums_stride_;
    }
  }

  static void multiply_rows(const Panel<Type>& panel, int64_t rows, int64_t steps) {
    if (rows == kBlockRows) return multiply_rows<kBlockRows>(panel, steps);
    if (rows == 1) return multiply_rows<1>(panel, steps);
    if constexpr (kBlockRows > 3) {
      if (rows == 3) return multiply_rows<3>(panel, steps);
    }
    return multiply_rows<2>(panel, steps);
  }

  template <int Rows>
  static void multiply_rows(const Panel<Type>& panel, int64_t steps) {
    if (panel.ahead_lines > 2 * steps) return multiply_panel<Type, Rows, Besides<4, 1, false>>(panel);
    if (panel.ahead_lines > steps) return multiply_panel<Type, Rows, Besides<2, 1, false>>(panel);
    // Two blocks of columns fetch the next four rows as four do.
    if (panel.columns <= 2 * kBlockColumns) return multiply_panel<Type, Rows, Besides<1, 2, false>>(panel);
    return multiply_panel<Type, Rows, Besides<1, 1, false>>(panel);
  }

  void finish(int64_t group, int64_t end, const Sums& sums) const {
    for (int64_t row = 0; row < tile_.rows; ++row) {
      for (int64_t column = group; column < end; column += kLanes) {
        const int64_t place = row * sums_stride_ + column - group;
        finish(tile_.row + row, tile_.column + column, least(kLanes, end - column), &sums[0][place], &sums[1][place]);
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
  int64_t sides_, panel_columns_, group_columns_, sums_stride_;
  bool few_, copies_panels_;
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
