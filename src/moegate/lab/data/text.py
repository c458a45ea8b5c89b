"""The byte-level text corpus: several domains, each with fixed training and validation text."""

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moegate.lab.data.cache import cache_root, write_folder
from moegate.lab.data.documents import Document, join, split_domains
from moegate.lab.data.folder import read_folder
from moegate.lab.data.packages import package_version
from moegate.lab.data.rows import DataRow
from moegate.lab.data.sources import Source, read_source, select_sources

VOCABULARY_SIZE = 256
"""Tokens are bytes; byte 0 ends a document."""

_RECIPE = 1  # raise it when the code changes which bytes are taken: cached corpora are then built anew
_MANIFEST = "manifest.json"
_SPLITS = ("train", "validation")


@dataclass(frozen=True, eq=False)
class TextDomain:
    """The text of one domain, documents in order, each followed by a zero byte."""

    name: str
    train: Tensor
    """[N] uint8."""
    validation: Tensor
    """[N] uint8; no document of it is in the training text of any domain."""
    source: str
    licence: str


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """The domains of a corpus; a domain's position is its id."""

    domains: tuple[TextDomain, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the domains, by id."""
        return tuple(domain.name for domain in self.domains)

    @property
    def fingerprint(self) -> str:
        """Hash of all names and bytes, to tell whether two runs saw the same data."""
        stamps = [{key: entry[key] for key in ("domain", *_SPLITS)} for entry in _entries(self)]
        return hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()


def load(
    folder: str | Path | None = None,
    *,
    domains: Sequence[str] | None = None,
    cache: Path | None = None,
) -> TextCorpus:
    """Load the default corpus, or a folder of the user's own with one subfolder a domain.

    The default corpus is read from installed packages, without a network, in some seconds the first time;
    then it comes from the cache. Which versions of the packages are installed decides its bytes.

    Args:
        folder: the user's corpus, see `read_folder`; never cached.
        domains: only these domains of the default corpus.
        cache: the cache folder (default: `cache_root()`).

    Raises:
        ModuleNotFoundError: a package of the extra `lab` is missing.
        FileNotFoundError: `folder` does not exist.
        ValueError: unusable folder, unknown domain, or `domains` together with `folder`.

    Example:
        >>> load(domains=["python", "cpp"]).names
        ('python', 'cpp')
    """
    if folder is not None:
        if domains is not None:
            raise ValueError("domains chooses from the default corpus: leave subfolders out of the folder instead.")
        return from_documents(read_folder(Path(folder)), source=str(folder))
    sources = select_sources(domains)
    versions = _versions(sources)
    stored = (cache or cache_root()) / "text" / _key(sources, versions)
    corpus = _read(stored)
    if corpus is None:
        corpus = _build(sources)
        _store(corpus, stored, versions)
    return corpus


def from_documents(
    documents: Mapping[str, Sequence[Document | bytes]], *, source: str = "given documents"
) -> TextCorpus:
    """Make a corpus of documents that are already in memory; splits as for files.

    Example:
        >>> corpus = from_documents({"a": [b"one line of text\\n"] + [b"%d" % n for n in range(20)]})
        >>> bytes(corpus.domains[0].validation[:3])
        b'17\\x00'
    """
    named = {
        name: [d if isinstance(d, Document) else Document(str(n), d) for n, d in enumerate(pieces)]
        for name, pieces in documents.items()
    }
    return _corpus(named, dict.fromkeys(named, (source, "the owner's")))


def describe(corpus: TextCorpus | None = None) -> list[DataRow]:
    """One row a domain for the table of `moegate data`; sizes in bytes.

    Example:
        >>> describe(from_documents({"a": [b"%d" % n for n in range(20)]}))[0].total
        50
    """
    corpus = load() if corpus is None else corpus
    return [
        DataRow(
            domain=domain.name,
            unit="bytes",
            total=len(domain.train) + len(domain.validation),
            train=len(domain.train),
            validation=len(domain.validation),
            source=domain.source,
            licence=domain.licence,
        )
        for domain in corpus.domains
    ]


def _build(sources: Mapping[str, Source]) -> TextCorpus:
    documents = {name: read_source(source) for name, source in sources.items()}
    return _corpus(documents, {name: (s.description, s.licence) for name, s in sources.items()})


def _corpus(documents: Mapping[str, Sequence[Document]], origins: Mapping[str, tuple[str, str]]) -> TextCorpus:
    return TextCorpus(
        tuple(
            TextDomain(name, _tensor(join(split.train)), _tensor(join(split.validation)), *origins[name])
            for name, split in split_domains(documents).items()
        )
    )


def _tensor(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def _versions(sources: Mapping[str, Source]) -> dict[str, str]:
    """The versions of everything the sources read."""
    wanted = sorted({name for source in sources.values() for name in source.distributions})
    return {name: platform.python_version() if name == "python" else _version(name) for name in wanted}


def _version(distribution: str) -> str:
    try:
        return package_version(distribution)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"The default text corpus is read from the package {distribution!r}, which is not installed: run "
            "in the clone, pip install '.[lab]', or give a folder of your own (--corpus DIR).",
            name=distribution,
        ) from None


def _key(sources: Mapping[str, Source], versions: Mapping[str, str]) -> str:
    """The name of the cached corpus: a hash of everything that decides its bytes."""
    parts = {"recipe": _RECIPE, "domains": list(sources), "versions": dict(versions)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _entries(corpus: TextCorpus) -> list[dict[str, Any]]:
    """Per domain: name, origin, and size and sha256 of both splits."""
    return [
        {"domain": domain.name, "source": domain.source, "licence": domain.licence}
        | {split: _stamp(getattr(domain, split).numpy().tobytes()) for split in _SPLITS}
        for domain in corpus.domains
    ]


def _stamp(text: bytes) -> dict[str, Any]:
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def _store(corpus: TextCorpus, folder: Path, versions: Mapping[str, str]) -> None:
    manifest = {"recipe": _RECIPE, "versions": dict(versions), "domains": _entries(corpus)}
    contents = {_MANIFEST: json.dumps(manifest, indent=2).encode()}
    for domain in corpus.domains:
        contents |= {f"{domain.name}.{split}.bin": getattr(domain, split).numpy().tobytes() for split in _SPLITS}
    try:
        write_folder(folder, contents)
    except OSError as error:
        warnings.warn(f"Could not cache the corpus in {folder} ({error}); set MOEGATE_CACHE.", stacklevel=3)


def _read(folder: Path) -> TextCorpus | None:
    """The cached corpus, or None when it is absent or any byte of it differs from its manifest."""
    try:
        entries = json.loads((folder / _MANIFEST).read_bytes())["domains"]
        domains = []
        for entry in entries:
            texts = {split: (folder / f"{entry['domain']}.{split}.bin").read_bytes() for split in _SPLITS}
            if any(_stamp(texts[split]) != entry[split] for split in _SPLITS):
                return None
            train, validation = (_tensor(texts[split]) for split in _SPLITS)
            domains.append(TextDomain(entry["domain"], train, validation, entry["source"], entry["licence"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TextCorpus(tuple(domains))
