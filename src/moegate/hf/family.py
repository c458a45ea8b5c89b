"""What a row of the families' table says: where the parts of one kind of MoE block are, and what is special."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """One kind of MoE block in the modelling code of transformers.

    Paths are dotted names of attributes, from the block unless it says otherwise.

    Attributes:
        name: the class of the block.
        model_type: that of the configuration that the block reads.
        gate: the path of the router module; None where there is none.
        experts: the path of the module that holds the experts.
        bias: the path of the selection bias, a buffer or a parameter; None without one.
        shared: the path of the experts that every token goes to; None without any.
        weight: the path, from the gate, of the matrix that makes logits; None where there is no such matrix.
        logits: how the gate makes logits of hidden states, a key of ``moegate.hf.logits.LOGITS``.
        receives: how the experts are told who comes to them, a key of ``moegate.hf.received.CALLS``.
        expert_scale: the path of learned factors on the experts' weights; None without any.
        hash_table: the path of a table from token ids to experts, which some of the layers have in place of a
            selection; None where no layer has one.
        config: where a model has several configurations, the dotted path of the one that the block reads.
        rule: names that replace those of the configuration when the rule is read.
        scaled_after: the path of a factor that the block puts on what its experts return, while the configuration
            gives it as a scale of their weights; None where they agree.
        special: what is special about the block, in words; empty where nothing is.
        no_rule: why no ``RoutingRule`` expresses the block's routing; empty where one does.
    """

    name: str
    model_type: str
    gate: str | None = "gate"
    experts: str = "experts"
    bias: str | None = None
    shared: str | None = None
    weight: str | None = "weight"
    logits: str = "linear"
    receives: str = "top_k"
    expert_scale: str | None = None
    hash_table: str | None = None
    config: str | None = None
    rule: dict[str, Any] = field(default_factory=dict, hash=False)
    scaled_after: str | None = None
    special: str = ""
    no_rule: str = ""
