"""Token views: the beginning of some documents, with the experts of each token in every layer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moegate.report.packing import pack_experts, pack_weights
from moegate.report.traces.detail import Detail
from moegate.trace import Trace

__all__ = ["Decode", "Differs", "token_texts", "token_views"]

Decode = Callable[[Sequence[int]], Sequence[str]]
"""The text of each token of a document, from their ids; as many texts as ids."""

Rows = npt.NDArray[np.int64]
Differs = Callable[[Rows], npt.NDArray[np.int64]]
"""``[L, T]``: in how many experts the rows of the trace differ from another's."""

MAX_VIEWS = 8
MAX_LENGTH = 1500
MIN_LENGTH = 16


def token_texts(trace: Trace, rows: Rows, decode: Decode | None) -> list[str]:
    """The text of these rows' tokens; their ids where nothing decodes them, their rows where no id is known.

    Raises:
        ValueError: ``decode`` gives another number of texts than it got ids.
    """
    if trace.token_ids is None:
        return [f"[{row}]" for row in rows]
    ids = [int(token) for token in trace.token_ids[rows]]
    if decode is None:
        return [f"#{token}" if token >= 0 else "?" for token in ids]
    known = [token for token in ids if token >= 0]
    texts = list(decode(known))
    if len(texts) != len(known):
        raise ValueError(f"decode gave {len(texts)} texts for {len(known)} token ids; it must give one for each.")
    left = iter(texts)
    return [next(left) if token >= 0 else "?" for token in ids]


def token_views(
    trace: Trace, decode: Decode | None, detail: Detail, differs: Differs | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
    """The views, their texts, and whether texts were cut."""
    starts = _documents(trace)
    if not starts or not trace.num_layers:
        return [], [], False
    slots = min(detail.slots, trace.top_k)
    longest = max(MIN_LENGTH, detail.assignments // (len(starts) * trace.num_layers * max(slots, 1)))
    longest = min(MAX_LENGTH, longest)
    views: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for name, rows in starts:
        views.append({"text": len(texts), **_view(trace, rows[:longest], slots, differs)})
        texts.append({"domain": name, "tokens": token_texts(trace, rows[:longest], decode), "pictures": []})
    return views, texts, sum(min(len(rows), longest) for _, rows in starts) < int(trace.token_mask.sum())


def _documents(trace: Trace) -> list[tuple[str, Rows]]:
    """Some documents, named: those of all domains in turn, the first ones of each."""
    rows = np.flatnonzero(trace.token_mask.numpy())
    if not len(rows):
        return []
    if trace.document_ids is None:
        return _of_domains(trace, rows)
    document_R = trace.document_ids.numpy()[rows].astype(np.int64)
    domain_R = np.full(len(rows), -1) if trace.domain_ids is None else trace.domain_ids.numpy()[rows].astype(np.int64)
    documents, first = np.unique(document_R, return_index=True)
    by_domain: dict[int, list[int]] = {}
    for document, place in zip(documents.tolist(), first.tolist(), strict=True):
        by_domain.setdefault(int(domain_R[place]), []).append(document)
    chosen = _in_turns(list(by_domain.items()), MAX_VIEWS)
    return [(_name(trace, domain, f"document {document}"), rows[document_R == document]) for domain, document in chosen]


def _of_domains(trace: Trace, rows: Rows) -> list[tuple[str, Rows]]:
    """One stretch a domain, where documents are unknown."""
    if trace.domain_ids is None:
        return [("the beginning", rows)]
    domain_R = trace.domain_ids.numpy()[rows]
    found = np.unique(domain_R)[:MAX_VIEWS]
    return [(_name(trace, int(domain), "the rest"), rows[domain_R == domain]) for domain in found]


def _in_turns(groups: list[tuple[int, list[int]]], at_most: int) -> list[tuple[int, int]]:
    """The first of each group, then the second of each, and so on; in the order of the groups at the end."""
    ranked = sorted(
        (place, domain, member) for domain, members in groups for place, member in enumerate(members[:at_most])
    )
    return sorted((domain, member) for _, domain, member in ranked[:at_most])


def _name(trace: Trace, domain: int, otherwise: str) -> str:
    return trace.domains[domain] if 0 <= domain < len(trace.domains) else otherwise


def _view(trace: Trace, rows: Rows, slots: int, differs: Differs | None) -> dict[str, Any]:
    """The strongest experts of each token first where weights are known, else in the order of the slots."""
    experts_LTK = trace.indices[rows].numpy().astype(np.int64).swapaxes(0, 1)
    view: dict[str, Any] = {"slots": trace.top_k}
    if trace.weights is None:
        order_LTK = np.argsort(experts_LTK < 0, axis=2, kind="stable")[:, :, :slots]
    else:
        weights_LTK = np.nan_to_num(trace.weights[rows].float().numpy().swapaxes(0, 1))
        order_LTK = np.argsort(-np.where(experts_LTK < 0, -np.inf, weights_LTK), axis=2, kind="stable")[:, :, :slots]
        view["weights"] = pack_weights(np.take_along_axis(weights_LTK, order_LTK, axis=2))
    view["experts"] = pack_experts(np.take_along_axis(experts_LTK, order_LTK, axis=2))
    if differs is not None:
        view["differs"] = pack_experts(differs(rows))
    return view
