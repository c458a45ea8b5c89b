"""The default corpus, read once a session, in a cache that no other session sees."""

from pathlib import Path

import pytest

from moegate.lab.data import text


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus-cache")


@pytest.fixture(scope="session")
def default_corpus(corpus_cache: Path) -> text.TextCorpus:
    return text.load(cache=corpus_cache)
