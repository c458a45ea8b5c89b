"""The load-balancing loss of each sequence on its own."""

from torch import Tensor

from moegate.records import Routing


def sequence_load_balance(routing: Routing, sequence_length: int | None = None) -> Tensor:
    """The mean over the sequences of each sequence's own load-balancing loss.

    Per sequence: ``E · Σ_i f_i · P_i`` with counts (before dropping) and mean probabilities over that
    sequence's real tokens. Sequences without a real token are left out of the mean. Perfect balance within
    every sequence reads 1.0. It is stricter than ``load_balance``: experts that specialise in whole sequences
    balance the batch, but no sequence.

    Args:
        routing: one layer's routing.
        sequence_length: tokens per sequence. By default the last axis of the logits' leading shape, so logits
            ``[batch, sequence, E]`` need no argument.

    Raises:
        ValueError: the length is unknown, not positive, or does not divide the number of tokens.

    Example:
        >>> import torch, moegate
        >>> logits = torch.tensor([[[9.0, 0.0]] * 3, [[0.0, 9.0]] * 3])  # each sequence has its own expert
        >>> routing = moegate.route(logits, moegate.recipes.switch())
        >>> round(sequence_load_balance(routing).item(), 2)
        2.0

    Source: DeepSeek-V3, arXiv 2412.19437, equations 17 to 20.
    """
    length = _length(routing, sequence_length)
    probabilities_NSE = routing.probabilities.reshape(-1, length, routing.num_experts)
    real_N = _real_tokens(routing, length)
    mean_NE = probabilities_NSE.sum(dim=1) / real_N.clamp(min=1)[:, None]
    counts_NE = _counts(routing, length).to(mean_NE.dtype)
    share_NE = counts_NE / counts_NE.sum(dim=1, keepdim=True).clamp(min=1)
    loss_N = routing.num_experts * (share_NE * mean_NE).sum(dim=1)
    return loss_N.sum() / (real_N > 0).sum().clamp(min=1)


def _length(routing: Routing, sequence_length: int | None) -> int:
    if sequence_length is None:
        if len(routing.batch_shape) < 2:
            raise ValueError(
                f"the logits had the leading shape {routing.batch_shape}, which does not say how long a "
                "sequence is: pass sequence_length, or route logits of shape [batch, sequence, experts]."
            )
        sequence_length = routing.batch_shape[-1]
        if sequence_length == 0:
            return 1  # no tokens at all: any length gives zero sequences
    if sequence_length < 1 or routing.num_tokens % sequence_length:
        raise ValueError(
            f"sequence_length={sequence_length} does not divide the {routing.num_tokens} tokens into whole "
            "sequences: pass a positive divisor, and pad shorter sequences with masked tokens."
        )
    return sequence_length


def _real_tokens(routing: Routing, length: int) -> Tensor:
    """``[N]`` int64: real tokens per sequence."""
    num_sequences = routing.num_tokens // length
    if routing.token_mask is None:
        return routing.expert_index.new_full((num_sequences,), length)
    return routing.token_mask.reshape(num_sequences, length).sum(dim=1)


def _counts(routing: Routing, length: int) -> Tensor:
    """``[N, E]`` int64: assignments per sequence and expert, before dropping."""
    num_sequences = routing.num_tokens // length
    index_NR = routing.selected_index.reshape(num_sequences, length * routing.top_k)
    counts_NE = index_NR.new_zeros((num_sequences, routing.num_experts))
    return counts_NE.scatter_add_(1, index_NR.clamp(min=0), (index_NR >= 0).to(counts_NE.dtype))
