"""Texts to run a model on: files, folders with a domain each, or a sample of the lab's corpus."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moegate.hf.loading import TextBatch, Tokenizer, texts_to_batches

__all__ = ["Domain", "domains_of_corpus", "domains_of_files", "sample_domains", "text_batches"]


@dataclass(frozen=True)
class Domain:
    """Texts of one kind: a name, and files or a text of its own."""

    name: str
    files: tuple[Path, ...] = ()
    text: str = ""

    def texts(self) -> Iterator[str]:
        """The texts, read one after the other; a ``ValueError`` for a binary file."""
        if self.text:
            yield self.text
        for path in self.files:
            yield _read(path)

    @property
    def num_texts(self) -> int:
        """How many texts there are."""
        return len(self.files) + bool(self.text)


def domains_of_files(files: Sequence[str | Path]) -> list[Domain]:
    """A domain a file, named as the file.

    Raises:
        ValueError: one of them is no file, or is named twice.
    """
    paths = [Path(name) for name in files]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is no file; pass text files, or a folder of them with --corpus.")
    names = [path.stem if len({one.stem for one in paths}) == len(paths) else str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("The same text file is given twice.")
    return [Domain(name, (path,)) for name, path in zip(names, paths, strict=True)]


def domains_of_corpus(folder: str | Path) -> list[Domain]:
    """A domain a sub-folder, of all files in it and below; without sub-folders, a domain a file.

    Names that begin with a dot and empty files are left out.

    Raises:
        ValueError: there is no such folder, or no text in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("english/a.txt", "python/b.py"):
        ...         Path(folder, name).parent.mkdir()
        ...         _ = Path(folder, name).write_text("text")
        ...     [(domain.name, domain.num_texts) for domain in domains_of_corpus(folder)]
        [('english', 1), ('python', 1)]
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; pass one with a sub-folder of text files for each domain.")
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir()]
    found = [Domain(path.name, tuple(_files(path))) for path in folders] or domains_of_files(
        [path for path in entries if path.is_file() and path.stat().st_size]
    )
    found = [domain for domain in found if domain.num_texts]
    if not found:
        raise ValueError(f"There is no text in {root}: put text files there, or a sub-folder of them for each domain.")
    return found


def sample_domains(bytes_each: int = 50_000) -> list[Domain]:
    """Held-out text of every domain of the lab's corpus.

    Raises:
        ModuleNotFoundError: a package of the extra ``lab`` is missing.
    """
    from moegate.lab.data.text import load

    pieces = ((domain.name, bytes(domain.validation[:bytes_each].tolist())) for domain in load().domains)
    # A zero byte ends a document of the corpus.
    return [Domain(name, text=piece.decode("utf-8", errors="replace").replace("\0", "\n")) for name, piece in pieces]


def text_batches(
    domains: Sequence[Domain], tokenizer: Tokenizer, *, tokens: int, sequence_length: int, batch_size: int
) -> Iterator[TextBatch]:
    """Batches of all domains, at most ``tokens`` tokens, of each domain as many; a batch is of one domain.

    Raises:
        ValueError: a number is below 1, or there are more domains than tokens.
    """
    if tokens < max(len(domains), 1):
        raise ValueError(f"{tokens} tokens are too few for {len(domains)} domains: pass one for each at least.")
    for number, domain in enumerate(domains):
        yield from texts_to_batches(
            domain.texts(),
            tokenizer,
            sequence_length=sequence_length,
            batch_size=batch_size,
            max_tokens=tokens // len(domains),
            domain_ids=[number] * domain.num_texts,
        )


def _files(folder: Path) -> Iterable[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)
    return (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _read(path: Path) -> str:
    content = path.read_bytes()
    if b"\0" in content[:8192]:
        raise ValueError(f"{path} is not text: it has a zero byte. Leave it out.")
    return content.decode("utf-8-sig", errors="replace")
