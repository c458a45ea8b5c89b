"""Calls the raw operators with arguments that fit, of which some are then spoiled; run by ``test_fuzzing``.

``python fuzz_operators.py SEED ROUNDS`` prints, as JSON, how many calls of each operator gave a result and how many a
sentence. What was called last stands at the end of standard error, in case that nothing comes after it.
"""

import collections
import contextlib
import faulthandler
import json
import random
import sys
from typing import Any

import pytest
import quick_interpreter
import torch
from triton_sanitizer import Sanitizer
from triton_support import ON_TRITON

# These register operators of their own.
import moegate.ops.ordered_topk.algorithms
import moegate.ops.topk_gate.ablation  # noqa: F401
from moegate.ops.library import KERNELS, available_isas, forced_isa

Calls = dict[str, list[Any]]

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
DTYPES.append(torch.complex64)
INTEGERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 16, 64, 16383, 2**20, 2**24 + 1, 2**40, 2**62, 2**63 - 1]
NUMBERS = [float("nan"), float("inf"), float("-inf"), -1.0, 0.0, -0.0, 1e-300, 1e308]
INDICES = [-(2**63), 2**63 - 1, 2**32 + 1, 2**31, -2, -1, 0, 5, 64]
EXPERTS = [1, 2, 3, 4, 8, 12, 17] + ([] if ON_TRITON else [64, 257])
"""In Triton's interpreter, which takes a program for each expert after the other, no more than a few."""
HUGE = 2**45
"""More rows than any memory holds: a tensor of so many is one row, expanded."""


class Fuzzer:
    """Draws arguments from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self) -> int:
        return self.random.choice([0, 1, 2, 3, 8, 16, 17, 33])

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def maybe(self, value: Any) -> Any:
        return value if self.flag() else None

    def calls(self) -> Calls:
        """One call of each operator, with arguments that fit."""
        num_tokens, num_experts = self.size(), self.random.choice(EXPERTS)
        top_k = self.random.randint(1, num_experts)
        order = torch.rand(num_tokens, num_experts, generator=self.generator).argsort(dim=-1)
        index = order[:, :top_k].masked_fill(torch.rand(num_tokens, top_k, generator=self.generator) < 0.1, -1)
        _, offsets, slot, inverse = torch.ops.moegate.dispatch_plan(index, num_experts, 1, -1, False, True)
        return (
            self.gate_calls(index, num_experts)
            | self.order_calls(num_tokens, num_experts)
            | self.row_calls(slot, inverse)
            | self.expert_calls(offsets)
            | self.mixture_calls(index, num_experts)
            | self.linear_calls(num_tokens, num_experts)
        )

    def gate_calls(self, index: torch.Tensor, num_experts: int) -> Calls:
        (num_tokens, top_k), pick = index.shape, self.random.choice
        logits = self.floats(num_tokens, num_experts, dtype=pick([torch.float32, torch.bfloat16, torch.float16]))
        bias, mask = self.maybe(self.floats(num_experts)), self.maybe(self.floats(num_tokens) > 0)
        groups = pick([count for count in range(1, num_experts + 1) if num_experts % count == 0])
        mode = pick(range(6)) | pick(range(6)) << 4 | pick(range(64)) << 8
        rule = [top_k, groups, groups, 1e-20, 1.5, mode]
        grads = [self.maybe(self.floats(num_tokens, top_k)), self.maybe(self.floats(num_tokens).double())]
        chosen, total = self.floats(num_tokens, top_k), self.floats(num_tokens).double()
        backward = [*grads, None, index, chosen, total, logits, num_experts, logits.dtype, 1e-20, 1.5, mode]
        plan = [index if self.flag() else index.int(), num_experts, pick([1, 4]), pick([-1, 2]), False, self.flag()]
        study = [logits.float(), self.floats(num_experts), top_k, 1e-20, pick(range(5)), self.flag()]
        return {
            "topk_gate": [logits, bias, mask, *rule],
            "topk_gate_statistics": [logits, bias, mask, *rule],
            "topk_gate_backward": backward,
            "topk_gate_ablation": study,
            "dispatch_plan": plan,
        }

    def order_calls(self, num_rows: int, size: int) -> Calls:
        values, k = self.floats(num_rows, size), self.random.randint(0, size)
        return {
            "ordered_topk": [values, k, self.maybe(values > 0.5)],
            "topk_by_key": [(values * 5).int(), k],
            "topk_by_algorithm": [values, k, self.random.randint(0, 3)],
            "topk_by_algorithm_scratch": [size, k, self.random.randint(0, 3)],
            "portable_scores": [values, self.random.choice(["softmax", "sigmoid", "sqrt_softplus"])],
        }

    def row_calls(self, slot: torch.Tensor, inverse: torch.Tensor) -> Calls:
        dtype, width = self.random.choice(DTYPES[:4]), self.size()
        hidden = self.floats(inverse.shape[0], width, dtype=dtype)
        rows = self.floats(slot.shape[0], width, dtype=dtype)
        weights = self.floats(*inverse.shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        places = [slot, inverse]
        return {
            "permute": [hidden, *places, self.maybe(weights)],
            "combine": [rows, *places, self.maybe(weights)],
            "row_dots": [rows, hidden, *places],
            "combine_backward": [hidden, rows, *places, weights],
            "permute_backward": [rows, hidden, *places, weights],
        }

    def expert_calls(self, offsets: torch.Tensor) -> Calls:
        dtype, activation = self.random.choice([torch.float32, torch.bfloat16]), self.random.randint(0, 5)
        hidden, inner = self.size(), self.size()
        num_rows, num_experts, outer = int(offsets[-1]), offsets.shape[0], 2 * inner if activation < 2 else inner
        rows, grad, pre = (self.floats(num_rows, width, dtype=dtype) for width in (hidden, hidden, outer))
        up = self.floats(num_experts, outer, hidden, dtype=dtype)
        down = self.floats(num_experts, hidden, inner, dtype=dtype)
        given = [grad, rows, pre, up, down, offsets, activation]
        buffers = [torch.zeros_like(up), torch.zeros_like(down)]
        return {
            "experts": [rows, up, down, offsets, activation, self.flag()],
            "experts_backward": [*given, self.flag(), self.flag()],
            "experts_backward_into": [*given, self.flag(), *buffers],
            "experts_backward_kernel": [*given, self.maybe(torch.zeros_like(rows)), *buffers, self.flag()],
            "grouped_mm": [rows, up, offsets],
            "grouped_outer": [rows, pre, offsets],
        }

    def mixture_calls(self, index: torch.Tensor, num_experts: int) -> Calls:
        dtype, activation = self.random.choice([torch.float32, torch.bfloat16]), self.random.randint(0, 5)
        hidden, inner = self.size(), self.size()
        up = self.floats(num_experts, 2 * inner if activation < 2 else inner, hidden, dtype=dtype)
        down = self.floats(num_experts, hidden, inner, dtype=dtype)
        tokens, weights = self.floats(index.shape[0], hidden, dtype=dtype), self.floats(*index.shape)
        given = [tokens, index, weights, up, down, activation]
        _, offsets, slot, inverse = torch.ops.moegate.dispatch_plan(index, num_experts, 1, -1, False, False)
        pre = self.floats(slot.shape[0], up.shape[1], dtype=dtype)
        kept = [tokens, tokens, weights, slot, inverse, offsets, pre, up, down, activation]
        return {
            "mixture": [*given, self.flag()],
            "trained_mixture": given,
            "trained_mixture_backward": [*kept, self.flag(), self.flag(), self.flag()],
        }

    def linear_calls(self, num_tokens: int, num_experts: int) -> Calls:
        hidden_size, dtype = self.size(), torch.bfloat16
        hidden, weight = (self.floats(rows, hidden_size, dtype=dtype) for rows in (num_tokens, num_experts))
        grad = self.floats(num_tokens, num_experts)
        return {
            "wide_linear": [hidden, weight],
            "wide_linear_backward": [grad, hidden, weight, self.flag(), self.flag()],
        }

    def spoiled(self, value: Any) -> Any:
        """The argument, or one of its kind that may not fit."""
        if isinstance(value, torch.Tensor):
            return self.spoiled_tensor(value)
        if isinstance(value, bool):
            return not value
        for kind, choices in ((int, INTEGERS), (float, NUMBERS), (torch.dtype, DTYPES), (str, ["", "softmax", "é\0"])):
            if isinstance(value, kind):
                return self.random.choice(choices)
        return self.floats(*[self.size() for _ in range(self.random.randint(0, 3))])

    def spoiled_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        change = self.random.choice(
            [
                lambda: tensor.to(self.random.choice(DTYPES)),
                lambda: tensor[None],
                tensor.flatten,
                lambda: tensor[:-1],
                lambda: torch.cat([tensor, tensor]),
                lambda: tensor[:0],
                lambda: tensor[:1].expand_as(tensor),
                lambda: tensor[:1].expand(HUGE, *tensor.shape[1:]),
                lambda: tensor.transpose(0, -1),
                lambda: tensor.transpose(0, -1).contiguous().transpose(0, -1),
                lambda: tensor.repeat_interleave(2, dim=-1)[..., ::2],
                lambda: tensor.to("meta"),
                lambda: tensor.new_zeros(()),
                lambda: self.with_strange_values(tensor),
                lambda: self.with_strange_values(tensor),
            ]
        )
        try:
            return change()
        except (RuntimeError, IndexError):  # not every change suits every shape
            return tensor

    def with_strange_values(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bool:  # true, but not 1
            return torch.full(tensor.shape, 3, dtype=torch.uint8).view(torch.bool)
        values = NUMBERS if tensor.is_floating_point() else INDICES
        if tensor.dtype == torch.int32:
            values = [max(-(2**31), min(value, 2**31 - 1)) for value in INDICES]
        tensor = tensor.clone()
        for _ in range(-(-tensor.numel() // 4)):
            tensor.view(-1)[self.random.randrange(tensor.numel())] = self.random.choice(values)
        return tensor


def described(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return f"{value.dtype} {tuple(value.shape)} strides {value.stride()} {value.device}"


def outcome(name: str, arguments: list[Any]) -> str:
    """``result`` or ``sentence``; anything else is a defect, and raised."""
    try:
        getattr(torch.ops.moegate, name)(*arguments)
    except MemoryError:  # Python's own word for a list of HUGE numbers
        return "sentence"
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # the last is PyTorch's, of a missing dimension
        if len(str(error).split()) < 4:
            raise AssertionError(f"{name} raised something that is no sentence: {error!r}") from error
        return "sentence"
    return "result"


def main(seed: int, rounds: int) -> None:
    faulthandler.enable()
    if ON_TRITON:
        quick_interpreter.install(pytest.MonkeyPatch())
        Sanitizer(may_race=True).install(pytest.MonkeyPatch())
    torch.set_num_threads(2 if KERNELS.loaded else 1)
    fuzzer = Fuzzer(seed)
    counted: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    servers = available_isas() or ("Triton" if ON_TRITON else "reference",)
    for number in range(rounds):
        server = servers[number % len(servers)]
        with forced_isa(server) if KERNELS.loaded else contextlib.nullcontext():
            for name, arguments in fuzzer.calls().items():
                if not hasattr(torch.ops.moegate, name):  # some have no reference
                    continue
                for _ in range(fuzzer.random.choice([0, 1, 1, 2, 3])):
                    place = fuzzer.random.randrange(len(arguments))
                    arguments[place] = fuzzer.spoiled(arguments[place])
                print(server, name, *map(described, arguments), sep="; ", file=sys.stderr)
                counted[name][outcome(name, arguments)] += 1
    print(json.dumps(counted))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
