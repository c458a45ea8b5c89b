"""The corpus: the same bytes in every process, no document in both splits, a cache that checks itself."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moegate.lab.data import text

QUICK = ["german", "japanese"]


def documents_of(part: torch.Tensor) -> list[bytes]:
    content = part.numpy().tobytes()
    assert content.endswith(b"\0")
    return content[:-1].split(b"\0")


def only_folder(cache: Path) -> Path:
    (folder,) = (cache / "text").iterdir()
    return folder


def test_no_document_is_in_two_places(default_corpus: text.TextCorpus) -> None:
    train: dict[bytes, str] = {}
    for domain in default_corpus.domains:
        documents = documents_of(domain.train)
        assert len(set(documents)) == len(documents), domain.name
        train |= dict.fromkeys(documents, domain.name)
    for domain in default_corpus.domains:
        documents = documents_of(domain.validation)
        assert len(set(documents)) == len(documents), domain.name
        assert not set(documents) & set(train), domain.name


@pytest.mark.parametrize("name", ["french", "german", "spanish", "russian", "chinese", "japanese"])
def test_no_translated_sentence_is_in_both_splits(default_corpus: text.TextCorpus, name: str) -> None:
    (domain,) = [domain for domain in default_corpus.domains if domain.name == name]
    train, validation = (
        {line for line in part.numpy().tobytes().split(b"\n") if len(line) > 60}
        for part in (domain.train, domain.validation)
    )
    assert len(validation) > 10
    assert not train & validation


def test_a_tenth_is_for_validation(default_corpus: text.TextCorpus) -> None:
    for row in text.describe(default_corpus):
        assert 0.05 <= row.validation / row.total <= 0.15, row.domain


def test_types(default_corpus: text.TextCorpus) -> None:
    for domain in default_corpus.domains:
        for part in (domain.train, domain.validation):
            assert part.dtype == torch.uint8
            assert part.dim() == 1


def test_another_process_gets_the_same_bytes(tmp_path: Path) -> None:
    here = text.load(domains=QUICK, cache=tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from moegate.lab.data import text;"
        f"print(text.load(domains={QUICK!r}, cache=Path(sys.argv[1])).fingerprint)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", code, str(tmp_path / "there")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == here.fingerprint


def test_the_manifest_describes_the_files(default_corpus: text.TextCorpus, corpus_cache: Path) -> None:
    folder = only_folder(corpus_cache)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["domain"] for entry in manifest["domains"]] == list(default_corpus.names)
    listed = {"manifest.json"}
    for entry in manifest["domains"]:
        for split in ("train", "validation"):
            path = folder / f"{entry['domain']}.{split}.bin"
            content = path.read_bytes()
            listed.add(path.name)
            assert entry[split] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {path.name for path in folder.iterdir()} == listed
    assert {"python", "torch", "Django", "Trac", "numpy"} <= set(manifest["versions"])


def test_the_cache_is_used_and_gives_the_same(
    default_corpus: text.TextCorpus, corpus_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "read_source", lambda source: pytest.fail("the cache was not used"))
    again = text.load(cache=corpus_cache)
    assert again.fingerprint == default_corpus.fingerprint
    assert text.describe(again) == text.describe(default_corpus)


@pytest.mark.parametrize("damage", ["one byte", "short", "missing", "no manifest", "half manifest", "wrong manifest"])
def test_a_damaged_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    whole = text.load(domains=["german"], cache=tmp_path)
    folder = only_folder(tmp_path)
    content, manifest = folder / "german.train.bin", folder / "manifest.json"
    original = content.read_bytes()
    if damage == "one byte":
        content.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    elif damage == "short":
        content.write_bytes(original[:-1])
    elif damage == "missing":
        content.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half manifest":
        manifest.write_bytes(manifest.read_bytes()[:100])
    else:
        manifest.write_text('{"domains": [{"domain": "german"}]}')
    assert text.load(domains=["german"], cache=tmp_path).fingerprint == whole.fingerprint
    assert content.read_bytes() == original
    assert only_folder(tmp_path) == folder


def test_another_version_of_a_package_is_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text.load(domains=["german"], cache=tmp_path)
    version = text.package_version
    monkeypatch.setattr(text, "package_version", lambda name: "99" if name == "Trac" else version(name))
    text.load(domains=["german"], cache=tmp_path)
    assert len(list((tmp_path / "text").iterdir())) == 2


def test_an_unwritable_cache_warns_and_still_loads(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the cache folder should be")
    with pytest.warns(UserWarning, match="MOEGATE_CACHE"):
        assert text.load(domains=["german"], cache=occupied).names == ("german",)


def test_a_missing_distribution_is_named_with_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(text, "package_version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"'Django'.*'\.\[lab\]'.*--corpus DIR"):
        text.load(domains=["german"], cache=tmp_path)


def test_a_corpus_of_code_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = text.package_version

    def only_torch(name: str) -> str:
        assert name == "torch"
        return version(name)

    monkeypatch.setattr(text, "package_version", only_torch)
    assert text.load(domains=["python", "cpp"], cache=tmp_path).names == ("python", "cpp")


def test_from_documents_keeps_the_order_of_domains() -> None:
    pages = [b"page %d" % number for number in range(20)]
    corpus = text.from_documents({"z": pages, "a": [page + b"!" for page in pages]}, source="a test")
    assert corpus.names == ("z", "a")
    assert documents_of(corpus.domains[0].train) == pages[:18]
    assert documents_of(corpus.domains[1].validation) == [b"page 18!", b"page 19!"]
    assert {row.source for row in text.describe(corpus)} == {"a test"}


def test_the_fingerprint_sees_names_order_and_bytes() -> None:
    pages = {"a": [b"page %d" % n for n in range(20)], "b": [b"leaf %d" % n for n in range(20)]}
    changed = [
        pages,
        {"a": pages["a"], "c": pages["b"]},
        {"b": pages["b"], "a": pages["a"]},
        {"a": pages["a"], "b": [*pages["b"][:-1], b"leaf XX"]},
    ]
    assert len({text.from_documents(each).fingerprint for each in changed}) == 4
    assert text.from_documents(pages, source="elsewhere").fingerprint == text.from_documents(pages).fingerprint


def test_importing_the_lab_data_loads_no_package_it_reads() -> None:
    code = (
        "import sys; from moegate.lab.data import batches, images, text;"
        "print(sorted({'mlxtend', 'django', 'trac', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
