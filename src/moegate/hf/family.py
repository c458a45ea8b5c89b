"""What a row of the families' table says: where the parts of one kind of MoE block are, and what is special."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """One kind of MoE block in the modelling code of transformers.

    Paths are dotted names of attributes, from the block.

    Attributes:
        name: the class of the block.
        gate: the path of the router module.
        experts: the path of the module that holds the experts.
        bias: the path of the selection bias, a buffer or a parameter; None without one.
        shared: the path of the experts that every token goes to; None without any.
        logits: how the gate makes logits of hidden states, a key of ``moegate.hf.logits.LOGITS``.
        receives: how the experts are told who comes to them, a key of ``moegate.hf.received.CALLS``.
        config: where a model has several configurations, the dotted path of the one that the block reads.
        rule: names that replace those of the configuration when the rule is read.
        special: what is special about the block, in words; empty where nothing is.
        no_rule: why no ``RoutingRule`` expresses the block's routing; empty where one does.
    """

    name: str
    gate: str = "gate"
    experts: str = "experts"
    bias: str | None = None
    shared: str | None = None
    logits: str = "linear"
    receives: str = "top_k"
    config: str | None = None
    rule: dict[str, Any] = field(default_factory=dict, hash=False)
    special: str = ""
    no_rule: str = ""
