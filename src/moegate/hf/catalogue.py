"""The table of families as it reads: what is exact, what has no rule and why, where the bias lives, what is special."""

from dataclasses import dataclass

from moegate.hf.families import FAMILIES
from moegate.hf.family import Block
from moegate.hf.layers import read_rule
from moegate.rule import RoutingRule

__all__ = ["Entry", "catalogue"]


@dataclass(frozen=True)
class Entry:
    """One kind of MoE block of transformers.

    Attributes:
        family: the folder of its modelling code in transformers.
        block: its class.
        model_type: that of the configuration that it reads.
        rule: the rule of the family's default configuration, with one choice per token unless its code fixes
            the number; None where there is none.
        no_rule: why there is none; empty where there is one.
        bias: where the selection bias lives: a path from the block; empty without one.
        special: what is special, in words.
    """

    family: str
    block: str
    model_type: str
    rule: RoutingRule | None
    no_rule: str
    bias: str
    special: str

    @property
    def status(self) -> str:
        """``"exact"``, or ``"no rule"``."""
        return "no rule" if self.no_rule else "exact"


def catalogue() -> list[Entry]:
    """Every row of the families' table.

    Raises:
        ImportError: without transformers, whose default configurations are read.

    Example:
        >>> next(entry for entry in catalogue() if entry.family == "phimoe").rule.selection
        SparseMixer(top_k=2)
    """
    return [_entry(family, row) for family, rows in sorted(FAMILIES.items()) for row in rows]


def _entry(family: str, row: Block) -> Entry:
    rule = None if row.no_rule else read_rule(row, _default_names(row.model_type), top_k=1)
    return Entry(family, row.name, row.model_type, rule, row.no_rule, row.bias or "", row.special)


def _default_names(model_type: str) -> dict[str, object]:
    from transformers import CONFIG_MAPPING

    values = CONFIG_MAPPING[model_type]().to_dict()
    # DBRX keeps them in a part.
    return dict(values.get("ffn_config") or values)
