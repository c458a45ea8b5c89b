// The operator: checks, memory, and the split of the work into tiles that the threads take one by one.
#include "experts/cpu_operator.h"

#include "cpu/check.h"
#include "cpu/new_tensor.h"
#include "experts/cpu_kernel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace moegate {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 96 * 1024;         // of weights, at least: a smaller tile is not worth its beginning
constexpr int64_t kTilesPerThread = 32;           // about so many, for the threads to finish together
constexpr int64_t kThreadOperations = 256 * 1024; // below it a second thread costs more than it brings

struct Sizes {
  int64_t rows, hidden, columns, experts;
};

Sizes check_sizes(
    const Tensor& rows, const Tensor& up, const Tensor& down, const Tensor& offsets, Activation activation) {
  check_dim("rows", rows, 2);
  check_dim("up", up, 3);
  check_dim("down", down, 3);
  check_dim("offsets", offsets, 1);
  check_dtype("offsets", offsets, ScalarType::Long);
  check(
      rows.scalar_type() == ScalarType::Float || rows.scalar_type() == ScalarType::BFloat16,
      "rows must be Float or BFloat16, got ", torch::headeronly::toString(rows.scalar_type()), ".");
  check_dtype("up", up, rows.scalar_type());
  check_dtype("down", down, rows.scalar_type());
  const Sizes sizes{rows.size(0), rows.size(1), down.size(2), down.size(0)};
  check(
      down.size(1) == sizes.hidden, "down must be [", sizes.experts, ", ", sizes.hidden, ", ", sizes.columns,
      "] for rows of ", sizes.hidden, ", got [", down.size(0), ", ", down.size(1), ", ", down.size(2), "].");
  const int64_t sides = is_gated(activation) ? 2 : 1;
  check(
      up.size(0) == sizes.experts && up.size(1) == sides * sizes.columns && up.size(2) == sizes.hidden,
      "up must be [", sizes.experts, ", ", sides * sizes.columns, ", ", sizes.hidden, "] to go with down, got [",
      up.size(0), ", ", up.size(1), ", ", up.size(2), "].");
  check(
      offsets.size(0) == sizes.experts, "offsets must hold one end for each of ", sizes.experts, " experts, got ",
      offsets.size(0), ".");
  return sizes;
}

// The ends of the experts' rows.
std::vector<int64_t> read_offsets(const Tensor& offsets, int64_t rows) {
  const auto* const values = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t count = offsets.size(0), stride = offsets.stride(0);
  std::vector<int64_t> ends(static_cast<size_t>(count));
  int64_t before = 0;
  for (int64_t expert = 0; expert < count; ++expert) {
    const int64_t end = values[expert * stride];
    check(
        before <= end && end <= rows, "offsets must grow from 0 to at most ", rows, " rows, but offsets[", expert,
        "] is ", end, " after ", before, ".");
    ends[static_cast<size_t>(expert)] = before = end;
  }
  return ends;
}

// The tensor itself where its last dimension is contiguous, else a copy.
Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// The columns of a tile: whole panels.
int64_t tile_columns(const Product& product, const std::vector<int64_t>& ends, int64_t threads) {
  int64_t all = 0, begin = 0; // columns of all tiles together
  for (const int64_t end : ends) {
    all += (end - begin + kTileRows - 1) / kTileRows * product.columns;
    begin = end;
  }
  const int64_t element_bytes = product.bfloat16 ? 2 : 4;
  const int64_t column_bytes = std::max<int64_t>(product.length * sides_of(product) * element_bytes, 1);
  const int64_t panels = std::max(all / (threads * kTilesPerThread), kTileBytes / column_bytes) / kPanelColumns;
  return std::max<int64_t>(panels, 1) * kPanelColumns;
}

std::vector<Tile> split(const Product& product, const std::vector<int64_t>& ends, int64_t threads) {
  const int64_t columns = tile_columns(product, ends, threads);
  std::vector<Tile> tiles;
  int64_t begin = 0;
  for (size_t expert = 0; expert < ends.size(); ++expert) {
    for (int64_t row = begin; row < ends[expert]; row += kTileRows) {
      for (int64_t column = 0; column < product.columns; column += columns) {
        tiles.push_back({
            static_cast<int64_t>(expert), row, std::min(kTileRows, ends[expert] - row), column,
            std::min(columns, product.columns - column)});
      }
    }
    begin = ends[expert];
  }
  return tiles;
}

// The tiles, one by one, by however many threads call `work`.
class Queue {
 public:
  Queue(const Product& product, const std::vector<Tile>& tiles) : product_(product), tiles_(tiles) {
    for (const Tile& tile : tiles) most_rows_ = std::max(most_rows_, tile.rows);
  }

  // A thread takes its next tile before it begins one, so that the kernel can fetch that one's weights.
  void work() {
    const auto kernel = MOEGATE_SELECT_KERNEL(multiply_tile);
    const auto bytes = static_cast<size_t>(scratch_bytes(product_, most_rows_));
    const std::unique_ptr<void, decltype(&std::free)> scratch(
        bytes ? std::aligned_alloc(64, bytes) : nullptr, &std::free);
    check(bytes == 0 || scratch != nullptr, "There is no memory left for ", bytes, " bytes of work space.");
    const Tile* tile = take();
    while (tile != nullptr) {
      const Tile* const next = take();
      kernel(product_, *tile, next, scratch.get());
      tile = next;
    }
  }

 private:
  const Tile* take() {
    const size_t index = taken_.fetch_add(1, std::memory_order_relaxed);
    return index < tiles_.size() ? &tiles_[index] : nullptr;
  }

  const Product& product_;
  const std::vector<Tile>& tiles_;
  int64_t most_rows_ = 0;
  std::atomic<size_t> taken_{0};
};

void multiply(const Product& product, const std::vector<int64_t>& ends) {
  const int64_t operations = (ends.empty() ? 0 : ends.back()) * product.length * product.columns;
  const int64_t useful = std::max<int64_t>(operations / kThreadOperations, 1);
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), useful);
  const std::vector<Tile> tiles = split(product, ends, threads);
  Queue queue(product, tiles);
  if (threads == 1) return queue.work();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { queue.work(); });
}

void zero_from(const Tensor& tensor, int64_t row) {
  const int64_t count = tensor.size(0) - row;
  if (count == 0 || tensor.numel() == 0) return;
  auto rest = tensor;
  auto tail = torch::stable::narrow(rest, 0, row, count);
  torch::stable::zero_(tail);
}

Product product_of(const Tensor& rows, const Tensor& weights, const Tensor& out) {
  Product product{};
  product.rows = rows.const_data_ptr();
  product.weights = weights.const_data_ptr();
  product.out = out.mutable_data_ptr();
  product.row_stride = rows.stride(0);
  product.expert_stride = weights.stride(0);
  product.column_stride = weights.stride(1);
  product.out_stride = out.stride(0);
  product.length = rows.size(1);
  product.columns = out.size(1);
  product.bfloat16 = rows.scalar_type() == ScalarType::BFloat16;
  return product;
}

} // namespace

std::tuple<Tensor, Tensor> experts(
    Tensor given_rows, Tensor given_up, Tensor given_down, Tensor offsets, int64_t activation_index, bool keep) {
  check(
      activation_index >= 0 && activation_index <= static_cast<int64_t>(Activation::silu),
      "activation must be 0 to 5, got ", activation_index, ".");
  const auto activation = static_cast<Activation>(activation_index);
  const Sizes sizes = check_sizes(given_rows, given_up, given_down, offsets, activation);
  const std::vector<int64_t> ends = read_offsets(offsets, sizes.rows);
  const Tensor rows = with_contiguous_rows(given_rows);
  const Tensor up = with_contiguous_rows(given_up), down = with_contiguous_rows(given_down);
  const Tensor inner = new_tensor({sizes.rows, sizes.columns}, rows.scalar_type());
  const Tensor out = new_tensor({sizes.rows, sizes.hidden}, rows.scalar_type());
  const Tensor pre = new_tensor({keep ? sizes.rows : 0, up.size(1)}, rows.scalar_type());
  Product first = product_of(rows, up, inner);
  first.activates = true;
  first.activation = activation;
  if (keep) {
    first.before = pre.mutable_data_ptr();
    first.before_stride = pre.stride(0);
  }
  multiply(first, ends);
  multiply(product_of(inner, down, out), ends);
  const int64_t owned = ends.empty() ? 0 : ends.back();
  zero_from(out, owned);
  if (keep) zero_from(pre, owned);
  return {out, pre};
}

} // namespace moegate

STABLE_TORCH_LIBRARY_IMPL(moegate, CPU, m) { m.impl("experts", TORCH_BOX(&moegate::experts)); }
