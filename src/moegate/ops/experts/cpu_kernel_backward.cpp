#include "experts/cpu_kernel_backward.h"

#include "experts/backward_activation.h"
#include "experts/backward_pack.h"
#include "experts/backward_tile.h"

// The five steps of a task are three products and what surrounds them. Weights and rows are read where they lie, in
// blocks that are packed into the second-level cache; see backward_tile.h for the innermost loop. `Value` is float, or
// uint16_t for the bits of a bfloat16.
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

// Where a product goes: into the scratch memory, or a matrix of float32 itself; or, where the registers can be
// narrowed, through the scratch memory into a matrix of bfloat16.
struct Result {
  float* values;
  int64_t row;
  bool fresh = true;
  bool stream = false;
  uint16_t* halves = nullptr;
  int64_t halves_row = 0;
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

// Copies the steps [from, from + depth) of the right operand, columns [0, columns), one panel after the other.
template <class Mode, class Value>
void pack_right(Matrix<Value> right, int64_t from, int64_t depth, int64_t columns, char* to) {
  const int64_t units = (depth + Mode::values - 1) / Mode::values;
  for (int64_t column = 0; column < columns; column += kRegisterColumns) {
    pack(
        Mode{}, right.values + from * right.row + column, right.row, depth, smaller(kRegisterColumns, columns - column),
        reinterpret_cast<typename Mode::Unit*>(to), kRegisterColumns);
    to += units * kRegisterColumns * 4;
  }
}

template <class Mode>
void multiply_block(Product product, int64_t rows, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kRegisterColumns) {
    multiply_panel<Mode>(product, rows, smaller(kRegisterColumns, columns - column));
    product.right += product.steps * kRegisterColumns * 4;
    product.cold = false;
    product.result += kRegisterColumns;
    if (product.halves != nullptr) product.halves += kRegisterColumns;
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

// result = left . right, one block of the reduction after the other; `place_left(from, taken, product)` says where the
// units of the left operand's block are.
template <class Value, class PlaceLeft>
void multiply_blocks(
    Matrix<Value> right, int64_t rows, int64_t depth, int64_t columns, const Scratch& scratch, const Result& result,
    PlaceLeft place_left) {
  using Mode = typename ModeOf<Value>::type;
  Product product{};
  product.right_step = 4 * kRegisterColumns;
  product.result = result.values;
  product.result_row = result.row;
  product.halves_row = result.halves_row;
  for (int64_t from = 0; from < depth; from += kBackwardDepth) {
    const int64_t taken = smaller(kBackwardDepth, depth - from);
    const bool complete = from + taken == depth;
    pack_right<Mode>(right, from, taken, columns, scratch.right);
    place_left(from, taken, product);
    product.right = scratch.right;
    product.steps = (taken + Mode::values - 1) / Mode::values;
    product.fresh = result.fresh && from == 0;
    product.halves = complete ? result.halves : nullptr;
    product.stream = complete && result.stream;
    multiply_block<Mode>(product, rows, columns);
  }
}

// result = left [rows, depth] . right [depth, columns]
template <class Value>
void multiply(
    Matrix<Value> left, Matrix<Value> right, int64_t rows, int64_t depth, int64_t columns, const Scratch& scratch,
    const Result& result) {
  using Mode = typename ModeOf<Value>::type;
  const bool in_place = sizeof(Value) * Mode::values == 4 && depth % Mode::values == 0;
  multiply_blocks(
      right, rows, depth, columns, scratch, result, [&](int64_t from, int64_t taken, Product& product) {
        if (!in_place) copy_left(Mode{}, left, from, taken, rows, scratch.left);
        product.left = in_place ? reinterpret_cast<const char*>(left.values + from) : scratch.left;
        product.left_row = in_place ? left.row * static_cast<int64_t>(sizeof(Value)) : 4 * kBackwardDepth;
        product.left_step = 4;
        product.cold = in_place;
      });
}

// result = left^T [rows, depth] . right [depth, columns]: both operands lie along the reduction.
template <class Value>
void multiply_transposed(
    Matrix<Value> left, Matrix<Value> right, int64_t rows, int64_t depth, int64_t columns, const Scratch& scratch,
    const Result& result) {
  using Mode = typename ModeOf<Value>::type;
  const int64_t width = whole_vectors(rows);
  multiply_blocks(
      right, rows, depth, columns, scratch, result, [&](int64_t from, int64_t taken, Product& product) {
        auto* to = reinterpret_cast<typename Mode::Unit*>(scratch.left);
        pack(Mode{}, left.values + from * left.row, left.row, taken, rows, to, width);
        product.left = scratch.left;
        product.left_row = 4;
        product.left_step = 4 * width;
      });
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
void finish_inner(
    const BackwardArguments& a, int64_t row, int64_t to_row, int64_t column, float* grad, int64_t count) {
  float pre[kBackwardTaskColumns] = {}, up[kBackwardTaskColumns] = {};
  float inner[kBackwardTaskColumns], grad_gate[kBackwardTaskColumns];
  const Value* pre_at = static_cast<const Value*>(a.pre) + row * a.pre_width + column;
  const bool gated = is_gated(a.activation);
  read(pre_at, pre, count);
  if (gated) read(pre_at + a.width, up, count);
  activation_backward(a.activation, pre, up, grad, inner, grad_gate, count);
  Value* grad_pre = static_cast<Value*>(a.grad_pre) + to_row * a.pre_width + column;
  if (gated) write(grad_gate, grad_pre, count);
  write(grad, gated ? grad_pre + a.width : grad_pre, count);
  write(inner, static_cast<Value*>(a.inner) + to_row * a.width + column, count);
}

template <class Value>
void inner_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const Matrix<Value> left{static_cast<const Value*>(a.grad_out) + task.first * a.hidden, a.hidden};
  const Matrix<Value> right{static_cast<const Value*>(a.down) + task.expert * a.hidden * a.width + task.left, a.width};
  const int64_t columns = task.right - task.left;
  const Result result{scratch.result, whole_vectors(columns)};
  multiply(left, right, task.last - task.first, a.hidden, columns, scratch, result);
  for (int64_t row = task.first; row < task.last; ++row) {
    float* grad = result.values + (row - task.first) * result.row;
    finish_inner<Value>(a, row, row - task.start + task.between, task.left, grad, columns);
  }
}

// Whether whole vectors can go where they belong, without passing through the scratch memory.
bool is_direct(int64_t columns, const float*) { return columns % kLanes == 0; }
#if MOEGATE_ISA_avx512_bf16
bool is_direct(int64_t columns, const uint16_t*) { return columns % kLanes == 0; }
#else
bool is_direct(int64_t, const uint16_t*) { return false; }
#endif

Result direct_result(const Scratch&, float* to, int64_t row, int64_t) { return {to, row}; }
Result direct_result(const Scratch& scratch, uint16_t* to, int64_t row, int64_t columns) {
  Result result{scratch.result, columns};
  result.halves = to;
  result.halves_row = row;
  return result;
}

template <class Value>
void grad_rows_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const int64_t from = task.first - task.start + task.between, columns = task.right - task.left;
  const Matrix<Value> left{static_cast<const Value*>(a.grad_pre) + from * a.pre_width, a.pre_width};
  const Matrix<Value> right{
      static_cast<const Value*>(a.up) + task.expert * a.pre_width * a.hidden + task.left, a.hidden};
  Value* to = static_cast<Value*>(a.grad_rows) + task.first * a.hidden + task.left;
  const bool direct = is_direct(columns, to);
  const Result result =
      direct ? direct_result(scratch, to, a.hidden, columns) : Result{scratch.result, whole_vectors(columns)};
  multiply(left, right, task.last - task.first, a.pre_width, columns, scratch, result);
  if (direct) return;
  for (int64_t row = 0; row < task.last - task.first; ++row) {
    write(result.values + row * result.row, to + row * a.hidden, columns);
  }
}

// left^T . right over the rows of the expert, into its part [rows, columns] of a gradient whose rows are `width` long.
template <class Value, class Gradient>
void gradient_step(
    const BackwardArguments& a, const BackwardTask& task, Matrix<Value> left, Matrix<Value> right, Gradient* to,
    const Scratch& scratch) {
  const int64_t width = right.row, rows = task.last - task.first, columns = task.right - task.left;
  to += (task.expert * left.row + task.first) * width + task.left;
  left.values += task.first;
  right.values += task.left;
  const bool adds_narrow = a.accumulate && sizeof(Gradient) == 2;
  const bool direct = is_direct(columns, to) && !adds_narrow;
  Result result = direct ? direct_result(scratch, to, width, columns) : Result{scratch.result, whole_vectors(columns)};
  if (direct) {
    const bool aligned = reinterpret_cast<uintptr_t>(to) % 64 == 0 && width * sizeof(Gradient) % 64 == 0;
    result.fresh = !a.accumulate;
    result.stream = a.stream && aligned && result.fresh;
  }
  multiply_transposed(left, right, rows, task.end - task.start, columns, scratch, result);
  if (result.stream) finish_streams();
  if (direct) return;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = result.values + row * result.row;
    a.accumulate ? add(from, to + row * width, columns) : write(from, to + row * width, columns);
  }
}

template <class Value>
void gradient_step(
    const BackwardArguments& a, const BackwardTask& task, Matrix<Value> left, Matrix<Value> right, void* gradient,
    const Scratch& scratch) {
  if (a.single_gradients) {
    gradient_step(a, task, left, right, static_cast<float*>(gradient), scratch);
  } else {
    gradient_step(a, task, left, right, static_cast<uint16_t*>(gradient), scratch);
  }
}

template <class Value>
void grad_up_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const Matrix<Value> left{static_cast<const Value*>(a.grad_pre) + task.between * a.pre_width, a.pre_width};
  const Matrix<Value> right{static_cast<const Value*>(a.rows) + task.start * a.hidden, a.hidden};
  gradient_step(a, task, left, right, a.grad_up, scratch);
}

template <class Value>
void grad_down_step(const BackwardArguments& a, const BackwardTask& task, const Scratch& scratch) {
  const Matrix<Value> left{static_cast<const Value*>(a.grad_out) + task.start * a.hidden, a.hidden};
  const Matrix<Value> right{static_cast<const Value*>(a.inner) + task.between * a.width, a.width};
  gradient_step(a, task, left, right, a.grad_down, scratch);
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
    case BackwardStep::grad_up: return grad_up_step<Value>(a, task, scratch);
    case BackwardStep::grad_down: return grad_down_step<Value>(a, task, scratch);
    case BackwardStep::no_rows: return no_rows_step(a, task);
  }
}

} // namespace

void run_backward_task(const BackwardArguments& arguments, const BackwardTask& task, void* memory) {
  const Scratch scratch(memory);
  arguments.half ? run<uint16_t>(arguments, task, scratch) : run<float>(arguments, task, scratch);
}

} // namespace moegate::MOEGATE_ISA
