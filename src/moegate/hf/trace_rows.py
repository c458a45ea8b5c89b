"""Rows of a trace out of the passes of a model: what the layers received, and who the tokens are."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moegate.hf.blocks import Block
from moegate.hf.token_rows import TokenRows, documents
from moegate.records import EMPTY
from moegate.trace.trace import TOKEN_COLUMNS, smallest_integer
from moegate.trace.writer import Kind

__all__ = ["RowMaker", "column_types"]


def column_types(
    num_experts: tuple[int, ...], weights: torch.dtype | None, logits: torch.dtype | None
) -> dict[str, Kind]:
    """What the columns of a trace hold; slots are as many as the experts will receive."""
    num_layers, most = len(num_experts), max(num_experts)
    types = {"indices": Kind(smallest_integer(most - 1), EMPTY, (num_layers, 0))}
    if weights is not None:
        types["weights"] = Kind(weights, 0.0, (num_layers, 0))
    if logits is not None:
        types["logits"] = Kind(logits, float("-inf"), (num_layers, most))
    small = {"domain_ids": torch.int16, "phases": torch.int8}
    return types | {name: Kind(small.get(name, torch.int32), -1) for name in TOKEN_COLUMNS}


@dataclass
class RowMaker:
    """Makes rows of blocks, and numbers documents and domains over a recording.

    Attributes:
        layers: the names of the layers.
        num_experts: ``E`` of each.
        types: of the columns, as ``column_types`` gives them.
        domain: what the tokens to come are about: one name, or one for each sequence of a batch.
        domains: the names so far.
        known: the columns that said something about some token.
    """

    layers: tuple[str, ...]
    num_experts: tuple[int, ...]
    types: dict[str, Kind]
    domain: str | Sequence[str] | None = None
    domains: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    next_document: int = 0
    last_documents: dict[nn.Module | None, Tensor] = field(default_factory=dict)

    def chunk(self, block: Block, call: int) -> dict[str, Tensor]:
        """The rows of one block, a tensor a column."""
        rows = self._choices(block)
        num_rows = block.num_rows
        rows["calls"] = torch.full((num_rows,), call, dtype=torch.int32)
        rows["phases"] = torch.full((num_rows,), block.phase, dtype=torch.int8)
        rows |= {name: torch.full((num_rows,), -1) for name in ("token_ids", "document_ids", "domain_ids")}
        if block.rows is not None:
            if block.rows.token_ids is not None:
                rows["token_ids"] = block.rows.token_ids.detach().cpu().reshape(-1)
            rows["document_ids"] = self._documents(block, block.rows).reshape(-1)
        if self.domain is not None:
            rows["domain_ids"] = self._domains(block)
        self.known |= {name for name in ("token_ids", "document_ids", "domain_ids") if bool((rows[name] >= 0).any())}
        return rows

    def _choices(self, block: Block) -> dict[str, Tensor]:
        mask_N = None if block.token_mask is None else block.token_mask.cpu()
        top_k = max(seen.received.expert_index.shape[-1] for seen in block.layers.values())
        shapes = {"indices": top_k, "weights": top_k, "logits": max(self.num_experts)}
        chosen = {
            name: torch.full(
                (block.num_rows, len(self.layers), width), self.types[name].fill, dtype=self.types[name].dtype
            )
            for name, width in shapes.items()
            if name in self.types
        }
        for layer, seen in block.layers.items():
            index_NK = self._checked(layer, seen.received.expert_index)
            # ZAYA's gate has a logit more, for the choice of no expert.
            logits_NE = None if seen.logits is None else seen.logits[:, : self.num_experts[layer]]
            values = {"indices": index_NK, "weights": seen.received.weights, "logits": logits_NE}
            rows = slice(None) if seen.positions is None else seen.positions.cpu()
            for name, tensor in chosen.items():
                value = values[name]
                if value is not None:
                    tensor[rows, layer, : value.shape[-1]] = value.detach().to("cpu", tensor.dtype)
        if mask_N is not None:
            for name, tensor in chosen.items():
                tensor[~mask_N] = self.types[name].fill
        if "weights" in chosen:
            chosen["weights"].masked_fill_(chosen["indices"] == EMPTY, 0.0)
        return chosen

    def _checked(self, layer: int, index_NK: Tensor) -> Tensor:
        """The indices, with -1 where transformers says "no expert" with a number one too high."""
        num_experts = self.num_experts[layer]
        if index_NK.numel() and (highest := int(index_NK.max())) >= num_experts:
            if highest > num_experts:
                raise ValueError(
                    f"The experts of {self.layers[layer]} received the index {highest}, and the family's row says that "
                    f"there are {num_experts} experts."
                )
            return index_NK.masked_fill(index_NK == num_experts, EMPTY)
        return index_NK

    def _documents(self, block: Block, rows: TokenRows) -> Tensor:
        """``[B, S]``, the document of each token; -1 for padding. Decoding goes on with the documents of its cache."""
        module, last_B = block.source.module, self.last_documents.get(block.source.module)
        real_BS = torch.ones(rows.batch_size, rows.length, dtype=torch.bool)
        if rows.token_mask is not None:
            real_BS = rows.token_mask.cpu()
        if block.source.past and last_B is not None and len(last_B) == rows.batch_size:
            document_BS = last_B[:, None].expand(-1, rows.length)
        else:
            first_BS = real_BS & (real_BS.cumsum(dim=1) == 1)
            starts_BS = (documents(block.source, rows) & real_BS) | first_BS
            document_BS = starts_BS.flatten().cumsum(dim=0).view_as(starts_BS) + self.next_document - 1
            self.next_document += int(starts_BS.sum())
        document_BS = document_BS.masked_fill(~real_BS, -1)
        if rows.length:
            self.last_documents[module] = document_BS.amax(dim=1)
        return document_BS

    def _domains(self, block: Block) -> Tensor:
        names = [self.domain] if isinstance(self.domain, str) else list(self.domain or ())
        for name in names:
            if name not in self.domains:
                self.domains.append(name)
        numbers = torch.tensor([self.domains.index(name) for name in names])
        if len(numbers) == 1:
            return numbers.expand(block.num_rows)
        if block.rows is None or len(numbers) != block.rows.batch_size:
            found = "unknown" if block.rows is None else block.rows.batch_size
            raise ValueError(
                f"domain has {len(names)} names, and the batch has {found} sequences: give one a sequence."
            )
        return numbers[:, None].expand(-1, block.rows.length).reshape(-1)
