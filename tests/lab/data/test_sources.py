"""The default domains: what is taken and what is left out."""

import ast
import re
import sysconfig
from pathlib import Path

import pytest

from moegate.lab.data import code_files, packages, prose, sources, text
from moegate.lab.data.documents import Document
from moegate.lab.data.sources import LARGEST_DOMAIN, SOURCES, Source, read_source, select_sources


def domain_text(corpus: text.TextCorpus, name: str) -> bytes:
    (domain,) = [domain for domain in corpus.domains if domain.name == name]
    return domain.train.numpy().tobytes() + domain.validation.numpy().tobytes()


def test_there_is_enough_text(default_corpus: text.TextCorpus) -> None:
    rows = text.describe(default_corpus)
    assert len(rows) >= 4
    assert sum(row.total for row in rows) >= 8_000_000
    for row in rows:
        assert row.total >= 80_000, row.domain
        assert row.total <= LARGEST_DOMAIN * 1.001, row.domain  # one byte more for each document's end


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python", rb"\n    def __init__\(self"),
        ("cpp", rb"#pragma once"),
        ("javascript", rb"function ?\("),
        ("english", rb"\bthe\b.*\bof the\b"),
        ("french", "é[a-z]+".encode()),
        ("german", "(ü|ö|ä|ß)[a-z]+".encode()),
        ("spanish", "ción ".encode()),
        ("russian", "ение ".encode()),
        ("chinese", "[的不是]".encode()),
        ("japanese", "(して|ください)".encode()),
    ],
)
def test_each_domain_is_what_its_name_says(default_corpus: text.TextCorpus, name: str, expected: bytes) -> None:
    content = domain_text(default_corpus, name)
    assert len(re.findall(expected, content)) > 100
    content.decode("utf-8") if name != "python" else content.decode("latin-1")


def test_python_files_are_whole_programs_of_the_library() -> None:
    documents = list(code_files.python_sources())
    library = Path(sysconfig.get_path("stdlib"))
    assert len(documents) > 100
    for document in documents:
        parts = Path(document.name).parts
        assert not {"test", "tests", "site-packages", "dist-packages", "pydoc_data"} & set(parts)
        assert document.text == (library / document.name).read_bytes()
    assert not any("_sysconfigdata" in document.name for document in documents)


def test_no_generated_header_and_no_minified_script() -> None:
    headers = list(code_files.torch_headers())
    assert len(headers) > 500
    assert not any(b"@generated" in header.text for header in headers)
    assert {header.name.split("/")[0] for header in headers} <= {"ATen", "c10", "caffe2", "torch"}
    scripts = list(code_files.javascript_sources())
    assert len(scripts) > 20
    assert max(max(map(len, script.text.split(b"\n"))) for script in scripts) < 2000
    assert not any(".min." in script.name for script in scripts)


def test_files_with_a_zero_byte_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "torch" / "include" / "c10").mkdir(parents=True)
    (tmp_path / "torch" / "include" / "c10" / "a.h").write_bytes(b"int a;\0")
    (tmp_path / "torch" / "include" / "c10" / "b.h").write_bytes(b"int b;\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_files, "package_folder", lambda *_: tmp_path / "torch")
        assert list(code_files.torch_headers()) == [Document("c10/b.h", b"int b;\n")]


def test_prose_is_docstrings_without_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "This function explains itself at some length, as prose should do. "
    source = (
        f'"""{sentence * 6}"""\n'
        f"def f():\n    '''{sentence * 5}\n\n    Examples\n    --------\n"
        "    >>> f()\n    42\n    >>> g(\n    ...   1)\n\n"
        f"    {sentence}\n    '''\n"
        "def short():\n    '''Too short to keep.'''\n"
        f"async def g():\n    r'''\\d {sentence * 6}'''\n"
        "x = 'not a docstring, however long it may be' * 100\n"
    )
    package = tmp_path / "package"
    (package / "tests").mkdir(parents=True)
    (package / "module.py").write_text(source)
    (package / "tests" / "test_it.py").write_text(source.replace("itself", "a test"))
    monkeypatch.setattr(prose, "package_folder", lambda *_: package)
    monkeypatch.setattr(prose, "_language_reference", lambda: iter(()))
    documents = list({document.name: document for document in prose.english_prose()}.values())
    assert [document.name for document in documents] == [
        "package/module.py:",
        "package/module.py:f",
        "package/module.py:g",
    ]
    f = documents[1].text.decode()
    assert f == f"{sentence * 5}\n\nExamples\n--------\n\n{sentence}".strip() + "\n"


def test_the_language_reference_is_read_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    topics = library / "pydoc_data" / "topics.py"
    documents = list(prose._language_reference())
    if topics.is_file():
        table = ast.literal_eval(ast.parse(topics.read_bytes()).body[-1].value)  # type: ignore[attr-defined]
        assert {document.name.removeprefix("topics/") for document in documents} <= set(table)
        assert sum(len(document.text) for document in documents) > 300_000
    monkeypatch.setattr(prose.sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(prose._language_reference()) == []


def test_the_order_does_not_depend_on_the_order_of_the_files() -> None:
    documents = [Document(f"file{number % 50}", b"text %d" % number) for number in range(100)]
    forwards = read_source(Source(lambda: documents, (), "", ""))
    backwards = read_source(Source(lambda: documents[::-1], (), "", ""))
    assert forwards == backwards
    assert sorted(forwards) == sorted(documents)
    assert forwards != sorted(forwards)


def test_no_source_gives_more_than_its_share() -> None:
    documents = [Document(str(number), b"%07d" % number * 100_000) for number in range(10)]
    taken = read_source(Source(lambda: documents, (), "", ""))
    assert len(taken) == LARGEST_DOMAIN // 700_000
    small = Document("small", b"x")
    assert small in read_source(Source(lambda: [*documents, small], (), "", ""))


def test_selection_keeps_the_order_of_the_table() -> None:
    assert list(select_sources(None)) == list(SOURCES)
    assert list(select_sources(["japanese", "python"])) == ["python", "japanese"]


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (["chinesee"], "Unknown domain 'chinesee': did you mean 'chinese'"),
        (["python", "klingon"], "Unknown domain 'klingon'.*python, cpp"),
        ([], "give a list of names"),
        ("python", "give a list of names"),
    ],
)
def test_wrong_selections(domains: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        select_sources(domains)


@pytest.mark.parametrize("module", ["django", "trac"])
def test_a_missing_package_is_named_with_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=rf"'{module}'.*pip install '\.\[lab\]'") as caught:
        read_source(SOURCES["german"])
    assert caught.value.name == module


def test_every_source_has_a_licence_and_says_where_it_is_from() -> None:
    for name, source in sources.SOURCES.items():
        assert source.description, name
        assert re.search("BSD|PSF", source.licence), name
