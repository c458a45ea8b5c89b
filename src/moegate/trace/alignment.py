"""Which rows of two traces are of the same token: checked by what both know, or found by the tokens themselves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.trace.importers.building import ASSUMED
from moegate.trace.trace import Trace

__all__ = ["Alignment", "align"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Rows of two traces that belong together: ``first`` and ``second`` ``[T]`` int64, and ``notes`` for the reader."""

    first: Tensor
    second: Tensor
    notes: tuple[str, ...] = ()


def align(a: Trace, b: Trace, *, common_prefix: bool = False) -> Alignment:
    """The rows of ``a`` and of ``b`` that are of the same tokens.

    Without ``common_prefix`` both must have the same tokens in the same order; where only the padding differs, it is
    left out. With it, the sequences of both are paired in their order, each up to the first token that differs, as
    answers of two engines to one prompt do.

    Raises:
        ValueError: the traces are of different models or tokens.

    Example:
        >>> a = Trace(torch.tensor([[[0]], [[1]]]), ("mlp",), (2,), token_ids=torch.tensor([5, 6]))
        >>> b = Trace(torch.tensor([[[0]]]), ("mlp",), (2,), token_ids=torch.tensor([5]))
        >>> align(a, b, common_prefix=True).first.tolist()
        [0]
    """
    notes = _same_layers(a, b)
    rows = _prefixes(a, b) if common_prefix else _all_rows(a, b)
    return Alignment(rows[0], rows[1], (*notes, *rows[2]))


def _same_layers(a: Trace, b: Trace) -> list[str]:
    if not a.num_layers and not b.num_layers:
        raise ValueError("There is nothing to compare: the traces have no layers.")
    if a.num_layers != b.num_layers:
        raise ValueError(
            f"The first trace has {a.num_layers} layers and the second {b.num_layers}: compare traces of one model, or "
            "select the layers that both have with trace.select(layers=...)."
        )
    notes = []
    if a.layers != b.layers:
        pairs = zip(a.layers, b.layers, strict=True)
        first, second = next((one, other) for one, other in pairs if one != other)
        notes.append(f"Layers are compared by position: their names differ ({first} and {second}).")
    assumed = any(_has_note(trace, ASSUMED) for trace in (a, b))
    for name, one, other in zip(a.layers, a.num_experts, b.num_experts, strict=True):
        if one != other and not assumed:
            raise ValueError(f"{name} has {one} experts in the first trace and {other} in the second: two models.")
    return notes


def _has_note(trace: Trace, note: str) -> bool:
    """Whether an importer left this note; whoever writes a trace may keep any JSON value under that name."""
    notes = trace.metadata.get("notes")
    return isinstance(notes, list | tuple) and note in notes


def _all_rows(a: Trace, b: Trace) -> tuple[Tensor, Tensor, list[str]]:
    notes = []
    rows = (torch.arange(a.num_tokens), torch.arange(b.num_tokens))
    if len(rows[0]) != len(rows[1]):
        rows = (a.token_mask.nonzero().flatten(), b.token_mask.nonzero().flatten())
        notes.append("Padded positions are left out: the traces have different numbers of them.")
    both_know = a.token_ids is not None and b.token_ids is not None
    hint = (
        "compare them up to where their sequences part (--tokens common-prefix)." if both_know else "record them alike."
    )
    if len(rows[0]) != len(rows[1]):
        raise ValueError(
            f"The first trace has {len(rows[0])} tokens and the second {len(rows[1])}, without padding: they are of "
            f"different texts, or {hint}"
        )
    if a.token_ids is None or b.token_ids is None:
        notes.append("Tokens are compared by position: one of the traces has no token ids.")
        return *rows, notes
    ids_a, ids_b = a.token_ids[rows[0]].long(), b.token_ids[rows[1]].long()
    other_T = (ids_a != ids_b) & (ids_a >= 0) & (ids_b >= 0)
    if other_T.any():
        row = int(other_T.nonzero()[0])
        raise ValueError(
            f"The token ids differ at {int(other_T.sum())} of {len(other_T)} tokens, first at token {row} "
            f"({int(ids_a[row])} and {int(ids_b[row])}): the traces are of different texts, or {hint}"
        )
    return *rows, notes


def _prefixes(a: Trace, b: Trace) -> tuple[Tensor, Tensor, list[str]]:
    if a.token_ids is None or b.token_ids is None:
        raise ValueError("A common prefix is found by the token ids, and one of the traces has none.")
    sequences_a, sequences_b = _sequences(a), _sequences(b)
    first, second = [], []
    for rows_a, rows_b in zip(sequences_a, sequences_b, strict=False):
        shared = min(len(rows_a), len(rows_b))
        same_T = a.token_ids[rows_a[:shared]] == b.token_ids[rows_b[:shared]]
        length = int(same_T.long().cumprod(dim=0).sum())
        first.append(rows_a[:length])
        second.append(rows_b[:length])
    rows = (torch.cat(first), torch.cat(second)) if first else (torch.zeros(0), torch.zeros(0))
    if not len(rows[0]):
        raise ValueError("No sequence of the first trace begins with the token that the second one's begins with.")
    notes = [
        f"Compared are the first {len(rows[0])} tokens that the sequences share, of {a.num_tokens} and {b.num_tokens}."
    ]
    if len(sequences_a) != len(sequences_b):
        notes.append(
            f"The first trace has {len(sequences_a)} sequences, the second {len(sequences_b)}; the rest is left out."
        )
    return rows[0], rows[1], notes


def _sequences(trace: Trace) -> list[Tensor]:
    """The rows of each sequence, in the order in which they came; padding is left out."""
    rows_T = trace.token_mask.nonzero().flatten()
    if trace.document_ids is None:
        return [rows_T]
    documents_T = trace.document_ids[rows_T].long()
    rows_T, documents_T = rows_T[documents_T >= 0], documents_T[documents_T >= 0]
    order = documents_T.argsort(stable=True)
    counts = torch.unique_consecutive(documents_T[order], return_counts=True)[1]
    return list(rows_T[order].split(counts.tolist()))
