"""Runs of a model on texts for the verbs: what it is run on, its trace, its sweep over K, with a progress bar."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moegate.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from moegate.hf.loading import TextBatch, Tokenizer
    from moegate.hf.saliency import Saliency
    from moegate.hf.text_files import Domain
    from moegate.hf.top_k_sweep import TopKResult

__all__ = ["Reading", "Subject", "load_subject", "record_subject", "score_subject", "sweep_subject"]

LOGITS_LIMIT = 2**30
"""Bytes of logits that are kept for the margins."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Reading:
    """What a model is run on, and how.

    Attributes:
        files: text files, each a domain.
        corpus: a folder with a domain a sub-folder; without it and ``files``, a sample of the lab's corpus.
        tokens: at most so many, of all domains together.
        batch_size: windows of a batch.
        sequence_length: tokens of a window; at most those that the model can look back.
        device: where the model runs.
        dtype: one of ``DTYPES``.
    """

    files: "Sequence[Path]" = ()
    corpus: Path | None = None
    tokens: int = 65_536
    batch_size: int = 8
    sequence_length: int = 512
    device: str = "cpu"
    dtype: str = "auto"

    def domains(self) -> "list[Domain]":
        """The texts by domain.

        Raises:
            ValueError: there are none, or both files and a folder are given.
        """
        from moegate.hf.text_files import domains_of_corpus, domains_of_files, sample_domains

        if self.files and self.corpus is not None:
            raise ValueError("--text and --corpus are both given; pass one of them.")
        if self.corpus is not None:
            return domains_of_corpus(self.corpus)
        return domains_of_files(self.files) if self.files else sample_domains()


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the batches that it is run on."""

    model: "nn.Module"
    tokenizer: "Tokenizer"
    batches: "list[TextBatch]"
    domains: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """The tokens of all batches."""
        return sum(batch.num_tokens for batch in self.batches)


def load_subject(name: str, reading: Reading, batches_of: Subject | None = None) -> Subject:
    """Loads a model and its texts, or the batches of another one.

    Raises:
        ValueError: there is no such model or text, or a setting makes no sense.
    """
    from moegate.hf.loading import load_model
    from moegate.hf.text_files import text_batches

    if reading.dtype not in DTYPES:
        raise ValueError(f"--dtype {reading.dtype!r} is none of {', '.join(DTYPES)}.")
    domains = [] if batches_of is not None else reading.domains()
    model, tokenizer = load_model(name, dtype=reading.dtype, device=_device(reading.device))
    if batches_of is not None:
        _check_vocabulary(name, model, batches_of.batches)
        return Subject(model, tokenizer, batches_of.batches, batches_of.domains)
    length = min(reading.sequence_length, _longest(model))
    sizes = {"tokens": reading.tokens, "sequence_length": length, "batch_size": reading.batch_size}
    batches = [batch.to(reading.device) for batch in text_batches(domains, tokenizer, **sizes)]
    if not batches:
        raise ValueError("There is no text to run the model on: the files are empty.")
    return Subject(model, tokenizer, batches, tuple(domain.name for domain in domains))


def _check_vocabulary(name: str, model: Any, batches: "Sequence[TextBatch]") -> None:
    """Refuse token ids of another model that this one has no embedding for."""
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    highest = max(int(batch.input_ids.max()) for batch in batches)
    if known is not None and highest >= known:
        raise ValueError(
            f"{name} knows {known} tokens, and the texts have token {highest}: models are compared on the same token "
            "ids, so both need the same tokenizer."
        )


def record_subject(subject: Subject, console: Console) -> Trace:
    """Runs the model on its texts and returns the trace; logits are kept while they fit in `LOGITS_LIMIT`."""
    import torch

    from moegate.hf import moe_layers, record

    experts = sum(layer.num_experts for layer in moe_layers(subject.model))
    logits = subject.num_tokens * experts * 4 <= LOGITS_LIMIT
    if not logits:
        console.print("The logits of so many tokens are not kept, so there are no margins; pass fewer with --tokens.")
    recording = record(subject.model, logits=logits)
    with torch.no_grad(), recording, _progress(console, "Recording", len(subject.batches)) as done:
        for batch in subject.batches:
            recording.domain = [subject.domains[number] for number in batch.domain_ids[:, 0].tolist()]
            subject.model(**batch.inputs)
            done()
    return recording.trace


def score_subject(subject: Subject, console: Console) -> "Saliency":
    """Scores the experts of the model by what they add."""
    from moegate.hf.saliency import saliency

    with _progress(console, "Scoring", len(subject.batches)) as done:
        return saliency(subject.model, subject.batches, seen=lambda _: done())


def sweep_subject(subject: Subject, top_k: "Sequence[int]", console: Console) -> "list[TopKResult]":
    """Evaluates the model with other numbers of experts per token."""
    from moegate.hf.top_k_sweep import sweep_top_k

    with _progress(console, "Experts per token", len(subject.batches) * len(top_k)) as done:
        return sweep_top_k(subject.model, subject.batches, subject.tokenizer, top_k, done=done)


@contextmanager
def _progress(console: Console, what: str, total: int) -> "Iterator[Callable[[], None]]":
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _longest(model: Any) -> int:
    """The tokens that the model can look back."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else 2**31


def _device(name: str) -> str:
    """`name`, if PyTorch has such a device here.

    Raises:
        ValueError: it has not.
    """
    import torch

    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"--device {name!r} cannot be used here: {reason}") from None
    return name
