"""What must hold on a card before any of its times counts; each check returns None, or says what is wrong.

The right answers are those of the operators' references, computed on the CPU, and of the float64 oracles.
"""

from collections.abc import Callable

from moegate.bench.cases import Verdict
from moegate.bench.gpu.card import Card
from moegate.bench.gpu.checks import gate, layer, memory, places

Check = Callable[[Card], Verdict]

CHECKS: dict[str, Check] = {
    "gate: hostile logits, every rule": gate.every_rule,
    "gate: gradients": gate.gradients,
    "plan: hostile indices": places.hostile_plans,
    "permute and combine: as their references": places.rows_and_sums,
    "experts: odd sizes, empty experts, both ways": layer.experts_both_ways,
    "the layer: output and gradients": layer.output_and_gradients,
    "fifty runs, the same bits": layer.same_bits,
    "nothing waits for the card": layer.nothing_waits,
    "a decoding step in a graph, with new tokens": layer.in_a_graph,
    "torch.compile(fullgraph=True), both ways": layer.compiled,
    "gate: hostile logits, narrow and masked": gate.every_type,
    "offsets beyond 2^31": memory.far_offsets,
    "nothing is read before it is written": memory.poisoned,
    "gate: hostile logits, every size": gate.every_size,
}
"""Name -> check, in the order in which they run: last what compiles most, should the time be over before."""
