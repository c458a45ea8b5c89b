"""The split of text into two halves that share no document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moegate.lab.data.documents import Document, Split, drop_duplicates, join, split_domains

TEXTS = st.lists(st.binary(min_size=1, max_size=60).map(lambda b: b.replace(b"\0", b"\n")), max_size=40)


def documents(*texts: bytes) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


def texts(part: list[Document]) -> list[bytes]:
    return [document.text for document in part]


def split_one(*given_texts: bytes) -> Split:
    return split_domains({"domain": documents(*given_texts)})["domain"]


@given(TEXTS)
def test_every_byte_is_in_exactly_one_split_and_in_order(given_texts: list[bytes]) -> None:
    try:
        split = split_one(*given_texts)
    except ValueError:
        return
    distinct = list(dict.fromkeys(given_texts))
    parts = texts(split.train), texts(split.validation)
    assert not set(parts[0]) & set(parts[1])
    # A cut inside a document can leave a half that equals a training document: only then bytes may be missing.
    whole = b"".join(parts[0]) + b"".join(parts[1])
    if len(whole) == sum(map(len, distinct)):
        assert whole == b"".join(distinct)
    else:
        assert len(whole) < sum(map(len, distinct))


@given(st.lists(st.integers(10, 20), min_size=40, max_size=80))
def test_small_documents_stay_whole_and_the_share_is_a_tenth(lengths: list[int]) -> None:
    given_texts = [b"%03d" % number + b"x" * (length - 3) for number, length in enumerate(lengths)]
    split = split_one(*given_texts)
    assert texts(split.train) + texts(split.validation) == given_texts
    share = sum(map(len, texts(split.validation))) / sum(map(len, given_texts))
    assert abs(share - 0.1) <= (20 / 2 + 0.5) / sum(lengths)  # half a document, and the rounding of the target


def test_the_cut_is_at_the_nearest_boundary() -> None:
    assert texts(split_one(b"a" * 88, b"b" * 12).validation) == [b"b" * 12]
    split = split_one(b"a" * 86, b"c" * 8, b"b" * 6)
    # Boundaries at 86 and 94, target 90: a tie, which goes to the earlier one.
    assert texts(split.validation) == [b"c" * 8, b"b" * 6]


def test_a_large_document_is_cut_after_a_line() -> None:
    lines = [b"line %03d\n" % number for number in range(100)]
    split = split_one(b"".join(lines))
    assert texts(split.train) == [b"".join(lines[:91])]
    assert texts(split.validation) == [b"".join(lines[91:])]
    assert split.train[0].name != split.validation[0].name


def test_a_large_document_between_others_keeps_the_order() -> None:
    big = b"".join(b"row %04d\n" % number for number in range(90))
    split = split_one(b"first", big, b"last")
    assert b"".join(texts(split.train) + texts(split.validation)) == b"first" + big + b"last"
    assert texts(split.train)[0] == b"first"
    assert texts(split.validation)[-1] == b"last"
    assert texts(split.train)[-1].endswith(b"\n")


def test_the_last_line_end_is_no_place_to_cut() -> None:
    """A long last line: cutting after it would leave no validation text; the line end before it is used."""
    split = split_one(b"short\n" + b"x" * 100 + b"\n")
    assert texts(split.train) == [b"short\n"]


@pytest.mark.parametrize("letter", ["é", "あ", "🙂"])
def test_without_line_ends_the_cut_is_between_characters(letter: str) -> None:
    split = split_one((letter * 101).encode())
    for part in (*split.train, *split.validation):
        assert set(part.text.decode()) == {letter}


def test_continuation_bytes_alone_do_not_loop_forever() -> None:
    with pytest.raises(ValueError, match="too few"):
        split_one(b"\x80" * 100)


def test_duplicates_within_a_domain_are_dropped() -> None:
    pages = [b"page %d" % number for number in range(20)]
    split = split_one(*pages, *pages)
    assert sorted(texts(split.train) + texts(split.validation)) == sorted(pages)


def test_validation_documents_known_from_another_domain_are_dropped() -> None:
    shared = b"shared"
    first = [shared, *(b"a%05d" % number for number in range(19))]
    second = [*(b"b%05d" % number for number in range(18)), shared, b"b-last"]
    split = split_domains({"first": documents(*first), "second": documents(*second)})
    assert shared in texts(split["first"].train)
    assert texts(split["second"].validation) == [b"b-last"]


@pytest.mark.parametrize("given_texts", [[], [b""], [b"x"], [b"x"] * 100], ids=["none", "empty", "byte", "same"])
def test_too_little_text_is_refused(given_texts: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"'domain' has . bytes of distinct text, too few"):
        split_one(*given_texts)


def test_domains_with_each_others_validation_text_are_refused() -> None:
    pages = [b"page %03d" % number for number in range(20)]
    with pytest.raises(ValueError, match=r"'first'.*not also training text"):
        split_domains({"first": documents(*pages), "copy": documents(*pages[::-1])})


def test_drop_duplicates_keeps_the_first_and_drops_empty() -> None:
    kept = drop_duplicates([Document("a", b"x"), Document("b", b""), Document("c", b"x"), Document("d", b"y")])
    assert [document.name for document in kept] == ["a", "d"]


def test_join_ends_every_document() -> None:
    assert join(documents(b"a", b"b\n")) == b"a\0b\n\0"
    assert join([]) == b""
