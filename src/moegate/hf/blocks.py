"""What the layers of one pass received, lined up: tokens in rows, the same token in the same row of every layer."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from moegate.hf.calls import Pass
from moegate.hf.received import Received
from moegate.hf.token_rows import TokenRows, phase_of, positions_of

__all__ = ["Block", "Seen", "blocks_of", "lined_up"]


class Seen(NamedTuple):
    """What one layer received of a block.

    Attributes:
        received: indices and weights ``[n, K]``.
        positions: ``[N]`` bool, the ``n`` rows of the block that reached the layer; None when all did.
        logits: ``[n, E]``, what the gate gave; None unless asked for.
    """

    received: Received
    positions: Tensor | None = None
    logits: Tensor | None = None


@dataclass(eq=False)
class Block:
    """Rows that some layers saw together.

    Attributes:
        source: the pass that they were seen in.
        num_rows: ``N``.
        phase: a number of ``moegate.trace.PHASES``.
        rows: what is known about the tokens; None where the inputs don't say.
        layers: what each layer saw, by its number.
    """

    source: Pass
    num_rows: int
    phase: int
    rows: TokenRows | None
    layers: dict[int, Seen] = field(default_factory=dict)

    @property
    def token_mask(self) -> Tensor | None:
        """``[N]`` bool, False for padding; None when all are real."""
        mask = None if self.rows is None else self.rows.token_mask
        return None if mask is None else mask.reshape(-1)


def blocks_of(one: Pass, layer_names: tuple[str, ...]) -> list[Block]:
    """The rows of a pass, in blocks, in the order in which the first of their layers ran.

    There is one block, unless a layer ran several times in the pass (a block each time) or saw other tokens than the
    pass's inputs have (a block of its own).
    """
    blocks: dict[tuple[int, int], Block] = {}
    times: dict[int, int] = {}
    rows, num_rows = one.rows, -1 if one.rows is None else one.rows.num_rows
    for layer, received in one.received:
        number = times[layer] = times.get(layer, -1) + 1
        size, positions = len(received.expert_index), None
        if size != num_rows:
            size, positions = lined_up(one, layer_names[layer], size)
        block = blocks.get((number, size))
        if block is None:
            own = rows if size == num_rows else None
            block = blocks[number, size] = Block(one, size, phase_of(one, own.length if own else size), own)
        logits = one.logits.get(layer, ())
        block.layers[layer] = Seen(received, positions, logits[number] if number < len(logits) else None)
    return list(blocks.values())


def lined_up(one: Pass, layer_name: str, count: int) -> tuple[int, Tensor | None]:
    """The rows of the block that a layer's tokens belong to, and which of them they are; None for all."""
    if one.rows is None or one.rows.num_rows == count:
        return count, None
    positions = positions_of(one, layer_name, one.rows.num_rows)
    return (count, None) if positions is None else (one.rows.num_rows, positions)
