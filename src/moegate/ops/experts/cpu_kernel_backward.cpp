#include "experts/cpu_kernel_backward.h"

#include "experts/backward_activation.h"
#include "experts/backward_pack.h"
#include "experts/backward_tile.h"

// Lambdas and templates over `Value` serve both dtypes: float, and uint16_t for the bits of a bfloat16.
namespace moegate::MOEGATE_ISA {
namespace {

// The blocks of one task in its scratch memory.
struct Scratch {
  char* left;
  char* right;
  float* result;

  explicit Scratch(void* memory)
      : left(static_cast<char*>(memory)),
        right(left + 4 * kBackwardDepth * kBackwardTaskRows),
        result(reinterpret_cast<float*>(right + 4 * kBackwardDepth * kBackwardTaskColumns)) {}
};

template <class Value>
struct Matrix {
  const Value* values;
  int64_t row; // elements from row to row
};

template <class Value>
struct ModeOf {
  using type = Singles;
};
#if MOEGATE_ISA_avx512_bf16
template <>
struct ModeOf<uint16_t> {
  using type = Pairs;
};
#endif

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Copies the steps [from, from + depth) of the right operand, columns [0, columns), one panel after the other.
template <class Mode, class Value>
void pack_right(Matrix<Value> right, int64_t from, int64_t depth, int64_t columns, char* to) {
  const int64_t units = (depth + Mode::values - 1) / Mode::values;
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    pack(
        Mode{}, right.values + from * right.row + column, right.row, depth, smaller(kTileColumns, columns - column),
        reinterpret_cast<typename Mode::Unit*>(to), kTileColumns);
    to += units * kTileColumns * 4;
  }
}

template <class Mode>
void multiply_block(Product product, int64_t rows, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    multiply_panel<Mode>(product, rows, smaller(kTileColumns, columns - column));
    product.right += product.steps * kTileColumns * 4;
    product.result += kTileColumns;
  }
}

// Rows of the left operand whose units can't be read in place: bfloat16 that must be widened, or an odd number of
// them, where the last one needs a zero beside it.
template <class Value>
void copy_left(Singles, Matrix<Value> left, int64_t from, int64_t depth, int64_t rows, char* to) {
  for (int64_t row = 0; row < rows; ++row) {
    pack(Singles{}, left.values + row * left.row + from, 0, 1, depth, reinterpret_cast<float*>(to), 0);
    to += 4 * kBackwardDepth;
  }
}

#if MOEGATE_ISA_avx512_bf16
void copy_left(Pairs, Matrix<uint16_t> left, int64_t from, int64_t depth, int64_t rows, char* to) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to, left.values + row * left.row + from, 2 * depth);
    std::memset(to + 2 * depth, 0, 2);
    to += 4 * kBackwardDepth;
  }
}
#endif

// result = left [rows, depth] . right [depth, columns], the reduction along the rows of `left`.
template <class Value>
void multiply(
    Matrix<Value> left, Matrix<Value> right, int64_t rows, int64_t depth, int64_t columns, const Scratch& scratch) {
  using Mode = typename ModeOf<Value>::type;
  const bool in_place = sizeof(Value) * Mode::values == 4 && depth % Mode::values == 0;
  Product product{};
  product.left_step = 4;
  product.right = scratch.right;
  product.right_step = 4 * kTileColumns;
  product.result = scratch.result;
  product.result_row = whole_vectors(columns);
  for (int64_t from = 0; from < depth; from += kBackwardDepth) {
    const int64_t taken = smaller(kBackwardDepth, depth - from);
    pack_right<Mode>(right, from, taken, columns, scratch.right);
    if (!in_place) copy_left(Mode{}, left, from, taken, rows, scratch.left);
    product.left = in_place ? reinterpret_cast<const char*>(left.values + from) : scratch.left;
    product.left_row = in_place ? left.row * static_cast<int64_t>(sizeof(Value)) : 4 * kBackwardDepth;
    product.steps = (taken + Mode::values - 1) / Mode::values;
    product.fresh = from == 0;
    multiply_block<Mode>(product, rows, columns);
  }
}

// result = left^T [rows, depth] . right [depth, columns], the reduction down the columns of both.
template <class Value>
void multiply_transposed(
    Matrix<Value> left, Matrix<Value> right, int64_t rows, int64_t depth, int64_t columns, const Scratch& scratch) {
  using Mode = typename ModeOf<Value>::type;
  Product product{};
  product.left = scratch.left;
  product.left_row = 4;
  product.left_step = 4 * whole_vectors(rows);
  product.right = scratch.right;
  product.right_step = 4 * kTileColumns;
  product.result = scratch.result;
  product.result_row = whole_vectors(columns);
  for (int64_t from = 0; from < depth; from += kBackwardDepth) {
    const int64_t taken = smaller(kBackwardDepth, depth - from);
    pack_right<Mode>(right, from, taken, columns, scratch.right);
    pack(
        Mode{}, left.values + from * left.row, left.row, taken, rows,
        reinterpret_cast<typename Mode::Unit*>(scratch.left), whole_vectors(rows));
    product.steps = (taken + Mode::values - 1) / Mode::values;
    product.fresh = from == 0;
    multiply_block<Mode>(product, rows, columns);
  }
}

void read(const float* from, float* to, int64_t count) { std::memcpy(to, from, 4 * count); }
void read(const uint16_t* from, float* to, int64_t count) { widen(from, to, count); }
void write(const float* from, float* to, int64_t count) { std::memcpy(to, from, 4 * count); }
void write(const float* from, uint16_t* to, int64_t count) { narrow(from, to, count); }

void add(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}
void add(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow(widen(to[i]) + from[i]);
}

// One row of `count` columns of the gradient of the inner values: through the activation, into the two matrices that
// the other steps read.
template <class Value>
void finish_inner(const BackwardArguments& a, int64_t row, int64_t column, float* grad, int64_t count) {
  float pre[kBackwardTaskColumns] = {}, up[kBackwardTaskColumns] = {};
  float inner[kBackwardTaskColumns], grad_gate[kBackwardTaskColumns];
  const int64_t at = row * a.pre_width + column;
  const bool gated = is_gated(a.activation);
  read(static_cast<const Value*>(a.pre) + at, pre, count);
  if (gated) read(static_cast<const Value*>(a.pre) + at + a.width, up, count);
  activation_backward(a.activation, pre, up, grad, inner, grad_gate, count);
  Value* grad_pre = static_cast<Value*>(a.grad_pre) + at;
  if (gated) write(grad_gate, grad_pre, count);
  write(grad, gated ? grad_pre + a.width : grad_pre, count);
  write(inner, static_cast<Value*>(a.inner) + row * a.width + column, count);
}

template <class Value>
void inner_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const Matrix<Value> left{static_cast<const Value*>(a.grad_out) + task.first * a.hidden, a.hidden};
  const Matrix<Value> right{static_cast<const Value*>(a.down) + task.expert * a.hidden * a.width + task.left, a.width};
  const int64_t columns = task.right - task.left;
  multiply(left, right, task.last - task.first, a.hidden, columns, scratch);
  for (int64_t row = task.first; row < task.last; ++row) {
    finish_inner<Value>(
        a, row, task.left, scratch.result + (row - task.first) * whole_vectors(columns), columns);
  }
}

template <class Value>
void grad_rows_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const Matrix<Value> left{static_cast<const Value*>(a.grad_pre) + task.first * a.pre_width, a.pre_width};
  const Matrix<Value> right{
      static_cast<const Value*>(a.up) + task.expert * a.pre_width * a.hidden + task.left, a.hidden};
  const int64_t columns = task.right - task.left;
  multiply(left, right, task.last - task.first, a.pre_width, columns, scratch);
  for (int64_t row = task.first; row < task.last; ++row) {
    write(
        scratch.result + (row - task.first) * whole_vectors(columns),
        static_cast<Value*>(a.grad_rows) + row * a.hidden + task.left, columns);
  }
}

template <class Value>
void write_gradient(
    const BackwardArguments& a, const BackwardTask& task, const float* result, Value* gradient, int64_t width) {
  const int64_t columns = task.right - task.left;
  for (int64_t row = task.first; row < task.last; ++row) {
    const float* from = result + (row - task.first) * whole_vectors(columns);
    Value* to = gradient + row * width + task.left;
    a.accumulate ? add(from, to, columns) : write(from, to, columns);
  }
}

// left^T . right over the rows of the expert, into its part of a gradient [rows, columns] of the weights.
template <class Value>
void gradient_step(
    const BackwardArguments& a, const BackwardTask& task, Matrix<Value> left, Matrix<Value> right, void* gradient,
    const Scratch& scratch) {
  const int64_t before = task.expert * left.row * right.row;
  left.values += task.start * left.row + task.first;
  const int64_t width = right.row;
  right.values += task.start * right.row + task.left;
  multiply_transposed(
      left, right, task.last - task.first, task.end - task.start, task.right - task.left, scratch);
  if (a.single_gradients) {
    write_gradient(a, task, scratch.result, static_cast<float*>(gradient) + before, width);
  } else {
    write_gradient(a, task, scratch.result, static_cast<uint16_t*>(gradient) + before, width);
  }
}

void no_rows_step(const BackwardArguments& a, const BackwardTask& task) {
  const int64_t bytes = a.single_gradients ? 4 : 2;
  const int64_t up = a.pre_width * a.hidden * bytes, down = a.hidden * a.width * bytes;
  std::memset(static_cast<char*>(a.grad_up) + task.expert * up, 0, up);
  std::memset(static_cast<char*>(a.grad_down) + task.expert * down, 0, down);
}

template <class Value>
void run(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  switch (task.step) {
    case BackwardStep::inner: return inner_step<Value>(a, task, scratch);
    case BackwardStep::grad_rows: return grad_rows_step<Value>(a, task, scratch);
    case BackwardStep::grad_up:
      return gradient_step<Value>(
          a, task, {static_cast<const Value*>(a.grad_pre), a.pre_width}, {static_cast<const Value*>(a.rows), a.hidden},
          a.grad_up, scratch);
    case BackwardStep::grad_down:
      return gradient_step<Value>(
          a, task, {static_cast<const Value*>(a.grad_out), a.hidden}, {static_cast<const Value*>(a.inner), a.width},
          a.grad_down, scratch);
    case BackwardStep::no_rows: return no_rows_step(a, task);
  }
}

} // namespace

void run_backward_task(const BackwardArguments& arguments, const BackwardTask& task, void* memory) {
  const Scratch scratch(memory);
  arguments.half ? run<uint16_t>(arguments, task, scratch) : run<float>(arguments, task, scratch);
}

} // namespace moegate::MOEGATE_ISA
