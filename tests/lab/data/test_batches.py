"""Batches: functions of the seed and the step, exact shares, fixed evaluation."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moegate.lab.data import text
from moegate.lab.data.batches import (
    ImageBatches,
    TextBatch,
    TextBatches,
    image_evaluation_batches,
    text_evaluation_batches,
)
from moegate.lab.data.images import ImageSplit

S = 16


def numbered(count: int) -> ImageSplit:
    """Image i is i everywhere, and so is its label."""
    label_N = torch.arange(count)
    return ImageSplit(label_N.to(torch.float32)[:, None].expand(count, 784).contiguous(), label_N)


def corpus_of(*names: str) -> text.TextCorpus:
    """Domain n uses letter n only, with numbers between, so that any byte tells its domain."""
    return text.from_documents(
        {name: [bytes([65 + place]) * (40 + 3 * page) for page in range(30)] for place, name in enumerate(names)}
    )


def stream(corpus: text.TextCorpus, *, batch_size: int = 8, seed: int = 0, **more: object) -> TextBatches:
    return TextBatches(corpus, batch_size=batch_size, sequence_length=S, seed=seed, **more)  # type: ignore[arg-type]


def same(first: TextBatch, second: TextBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_image_comes_once_an_epoch(count: int, batch_size: int, seed: int) -> None:
    batches = ImageBatches(numbered(count), batch_size=batch_size, seed=seed)
    epochs = 3
    steps = -(-epochs * count // batch_size)
    labels = torch.cat([batches.batch(step).labels for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(labels[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_images_stay_with_their_labels() -> None:
    batches = ImageBatches(numbered(50), batch_size=16, seed=1)
    for step in range(7):
        batch = batches.batch(step)
        assert batch.images.shape == (16, 784)
        torch.testing.assert_close(batch.images[:, 0], batch.labels.to(torch.float32), rtol=0, atol=0)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(ImageBatches(numbered(50), batch_size=50, seed=seed).batch(epoch).labels.tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25
    assert tuple(range(50)) not in orders


def test_image_batches_do_not_depend_on_what_was_asked_before() -> None:
    batches = ImageBatches(numbered(50), batch_size=16, seed=3)
    forwards = [batches.batch(step).labels for step in range(20)]
    torch.rand(5)  # the global generator has no say
    for step in reversed(range(20)):
        fresh = ImageBatches(numbered(50), batch_size=16, seed=3)
        assert torch.equal(fresh.batch(step).labels, forwards[step])
        assert torch.equal(batches.batch(step).labels, forwards[step])


def test_image_evaluation_takes_all_in_order() -> None:
    batches = list(image_evaluation_batches(numbered(10), batch_size=4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(10))


def test_targets_are_the_next_bytes_of_the_same_text() -> None:
    corpus = text.from_documents({"a": [bytes(range(1, 256)) + b"%d" % n for n in range(20)]})
    content = corpus.domains[0].train.numpy().tobytes()
    for step in range(20):
        batch = stream(corpus, seed=step).batch(step)
        assert batch.tokens.shape == batch.targets.shape == (8, S)
        assert batch.tokens.dtype == batch.targets.dtype == batch.domain.dtype == torch.int64
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            assert bytes(tokens) + bytes(targets[-1:]) in content
            assert tokens[1:] == targets[:-1]


def test_windows_are_of_the_domain_they_name_and_of_training_text() -> None:
    corpus = corpus_of("a", "b", "c")
    batches = stream(corpus, batch_size=9)
    for step in range(30):
        batch = batches.batch(step)
        for tokens, domain in zip(batch.tokens.tolist(), batch.domain.tolist(), strict=True):
            assert set(tokens) <= {0, 65 + domain}
            assert bytes(tokens) in corpus.domains[domain].train.numpy().tobytes()


def test_the_whole_training_text_can_be_drawn_ends_included() -> None:
    corpus = text.from_documents({"a": [b"%02d" % n for n in range(20)]})
    length = len(corpus.domains[0].train)
    batches = TextBatches(corpus, batch_size=64, sequence_length=length - 2, seed=0)
    content = corpus.domains[0].train.tolist()
    starts = Counter(content.index(row[0]) if row[0] else -1 for row in batches.batch(0).tokens.tolist())
    windows = {tuple(row) for row in batches.batch(0).tokens.tolist()}
    assert windows == {tuple(content[:-2]), tuple(content[1:-1])}
    assert sum(starts.values()) == 64
    longest = TextBatches(corpus, batch_size=2, sequence_length=length - 1, seed=0).batch(0)
    assert longest.tokens.tolist() == [content[:-1]] * 2
    assert longest.targets.tolist() == [content[1:]] * 2


def test_text_batches_do_not_depend_on_what_was_asked_before() -> None:
    corpus = corpus_of("a", "b")
    batches = stream(corpus, seed=5)
    forwards = [batches.batch(step) for step in range(10)]
    torch.rand(5)
    for step in reversed(range(10)):
        assert same(stream(corpus, seed=5).batch(step), forwards[step])
        assert same(batches.batch(step), forwards[step])


def test_steps_and_seeds_differ() -> None:
    corpus = text.from_documents({"a": [b"%05d," % n * 9 for n in range(2000)]})
    seen = {
        tuple(stream(corpus, seed=seed).batch(step).tokens.flatten().tolist())
        for seed in range(10)
        for step in range(10)
    }
    assert len(seen) == 100


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    batch_size=st.integers(1, 20),
    step=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_every_batch_has_the_share_of_each_domain_rounded(weights: list[int], batch_size: int, step: int) -> None:
    names = "abcdef"[: len(weights)]
    named = dict(zip(names, map(float, weights), strict=True))
    batch = stream(corpus_of(*names), batch_size=batch_size, weights=named).batch(step)
    counts = batch.domain.bincount(minlength=len(weights)).tolist()
    for count, weight in zip(counts, weights, strict=True):
        exact = batch_size * weight / sum(weights)
        assert abs(count - exact) < 1 + 1e-9
        if weight == 0:
            assert count == 0


def test_shares_are_exact_on_average_when_they_do_not_divide() -> None:
    batches = stream(corpus_of("a", "b", "c"), batch_size=4)
    counts = sum(batches.batch(step).domain.bincount(minlength=3) for step in range(1500))
    assert isinstance(counts, torch.Tensor)
    # Per step a count is 1 or 2 with mean 4/3 and variance 2/9; five standard deviations of the sum.
    assert (counts - 2000).abs().max() < 5 * (1500 * 2 / 9) ** 0.5


def test_rows_are_shuffled_over_domains() -> None:
    batches = stream(corpus_of("a", "b"), batch_size=2)
    firsts = Counter(int(batches.batch(step).domain[0]) for step in range(400))
    assert abs(firsts[0] - 200) < 5 * 10  # standard deviation 10


def test_missing_weights_are_zero_and_a_short_domain_without_weight_is_no_error() -> None:
    corpus = text.from_documents({"long": [b"x" * 50 + b"%d" % n for n in range(20)], "short": [b"aaaaaaaa", b"b"]})
    batch = stream(corpus, weights={"long": 1.0}).batch(0)
    assert batch.domain.tolist() == [0] * 8
    with pytest.raises(ValueError, match=r"'short' has \d+ bytes of train text.*sequence_length 16 needs 17"):
        stream(corpus)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_choose_no_domain_without_weight(
    monkeypatch: pytest.MonkeyPatch, draw: float
) -> None:
    batches = stream(corpus_of("a", "b", "c"), batch_size=3, weights={"b": 0.1})
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: rand(*size, **options).fill_(draw))
    assert batches.batch(0).domain.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"grek": 1.0}, "unknown domain 'grek': did you mean 'greek'"),
        ({"x" * 9: 1.0}, "the corpus has greek, latin"),
        ({"greek": -1.0}, r"weights\['greek'\] is -1.0"),
        ({"greek": float("nan")}, "finite"),
        ({"greek": float("inf")}, "finite"),
        ({"greek": 0.0}, "all 0"),
        ({}, "all 0"),
    ],
)
def test_wrong_weights(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        stream(corpus_of("greek", "latin"), weights=weights)


@pytest.mark.parametrize(
    "make",
    [
        lambda: stream(corpus_of("a"), batch_size=0),
        lambda: TextBatches(corpus_of("a"), batch_size=1, sequence_length=0, seed=0),
        lambda: stream(corpus_of("a")).batch(-1),
        lambda: ImageBatches(numbered(3), batch_size=-2, seed=0),
        lambda: ImageBatches(numbered(0), batch_size=1, seed=0),
        lambda: ImageBatches(numbered(3), batch_size=1, seed=0).batch(-1),
        lambda: list(image_evaluation_batches(numbered(3), batch_size=0)),
        lambda: list(text_evaluation_batches(corpus_of("a"), batch_size=1, sequence_length=8, windows_per_domain=0)),
    ],
)
def test_wrong_sizes(make: object) -> None:
    with pytest.raises(ValueError, match=r"is -?\d"):
        make()  # type: ignore[operator]


def evaluation(corpus: text.TextCorpus, windows: int, batch_size: int = 3, length: int = S) -> list[TextBatch]:
    return list(
        text_evaluation_batches(corpus, batch_size=batch_size, sequence_length=length, windows_per_domain=windows)
    )


def test_evaluation_is_one_domain_a_batch_in_order_and_always_the_same() -> None:
    corpus = corpus_of("a", "b")
    batches = evaluation(corpus, windows=4)
    assert [batch.domain.tolist() for batch in batches] == [[0] * 3, [0], [1] * 3, [1]]
    assert all(same(a, b) for a, b in zip(batches, evaluation(corpus, windows=4), strict=True))
    for batch in batches:
        for tokens, domain in zip(batch.tokens.tolist(), batch.domain.tolist(), strict=True):
            assert set(tokens) <= {0, 65 + domain}


@given(windows=st.integers(1, 60), length=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_no_byte_is_predicted_twice_and_the_text_is_spanned(windows: int, length: int) -> None:
    """Every byte of this text is unique in pairs, so a window's place can be read off it."""
    pairs = [bytes([first, second]) for first in range(1, 40) for second in range(41, 80)]
    corpus = text.from_documents({"a": pairs})
    content = corpus.domains[0].validation.tolist()
    places = {tuple(content[i : i + 3]): i for i in range(len(content) - 2)}
    batches = evaluation(corpus, windows, length=length)
    predicted: list[int] = []
    for batch in batches:
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            window = [*tokens, targets[-1]]
            candidates = [i for i in range(len(content) - length) if content[i : i + length + 1] == window]
            if len(window) >= 5:
                assert len(candidates) == 1
                assert candidates[0] == places.get(tuple(window[:3]), candidates[0])
                predicted += range(candidates[0] + 1, candidates[0] + length + 1)
    assert len(predicted) == len(set(predicted))
    count = sum(len(batch.tokens) for batch in batches)
    assert count == min(windows, (len(content) - 1) // length)
    if predicted and count > 1:
        assert min(predicted) == 1
        assert max(predicted) == len(content) - 1


def test_evaluation_needs_one_window_a_domain() -> None:
    corpus = corpus_of("a")
    length = len(corpus.domains[0].validation)
    assert len(evaluation(corpus, 5, length=length - 1)) == 1
    with pytest.raises(ValueError, match="validation text; a window of sequence_length"):
        evaluation(corpus, 5, length=length)


def test_real_text_goes_through(default_corpus: text.TextCorpus) -> None:
    batches = TextBatches(default_corpus, batch_size=20, sequence_length=128, seed=0)
    batch = batches.batch(12345)
    assert batch.domain.bincount().tolist() == [2] * 10
    assert int(batch.tokens.max()) < text.VOCABULARY_SIZE
    assert {int(b.domain[0]) for b in evaluation(default_corpus, 8, length=256)} == set(range(10))
