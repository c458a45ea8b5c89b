"""What the layers of one pass received, lined up: tokens in rows, the same token in the same row of every layer."""

from dataclasses import dataclass, field

from torch import Tensor

from moegate.hf.calls import Pass
from moegate.hf.received import Received
from moegate.hf.token_rows import TokenRows, phase_of, positions_of, token_rows

__all__ = ["Block", "Seen", "blocks_of"]


@dataclass(frozen=True, eq=False)
class Seen:
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
    """The rows of a pass, in blocks.

    There is one block, unless a layer ran several times in the pass (a block each time) or saw other tokens than the
    pass's inputs have (a block of its own).
    """
    if not one.received:
        return []
    rows = token_rows(one)
    if rows is None:
        num_rows = max(len(each.expert_index) for calls in one.received.values() for each in calls)
    else:
        num_rows = rows.batch_size * rows.length
    phase = phase_of(one, rows.length if rows else num_rows)
    blocks: dict[tuple[int, int], Block] = {}
    for layer, calls in one.received.items():
        logits = one.logits.get(layer, [])
        for number, received in enumerate(calls):
            count, positions = len(received.expert_index), None
            if count != num_rows:
                positions = positions_of(one, layer_names[layer], num_rows)
            aligned = count == num_rows or positions is not None
            size = num_rows if aligned else count
            if (number, size) not in blocks:
                blocks[number, size] = Block(one, size, phase, rows if aligned else None)
            gave = logits[number] if number < len(logits) else None
            blocks[number, size].layers[layer] = Seen(received, positions, gave)
    return list(blocks.values())
