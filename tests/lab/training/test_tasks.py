"""The tasks: what the models are fed, against plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moegate.lab.training.image_task import coarse, image_codes, shifted
from moegate.lab.training.task import Batch
from moegate.lab.training.tasks import make_task
from moegate.lab.training.text_task import byte_tokens


@pytest.mark.parametrize("furthest", [0, 1, 3])
def test_an_image_is_moved_as_a_whole_and_zeros_come_in(furthest: int) -> None:
    pixels = torch.rand(20, 784) + 0.5
    moved = shifted(pixels, furthest, torch.Generator().manual_seed(0)).view(20, 28, 28).numpy()
    moves = set()
    for before, after in zip(pixels.view(20, 28, 28).numpy(), moved, strict=True):
        padded = np.pad(before, furthest)
        fits = [
            (down, right)
            for down in range(2 * furthest + 1)
            for right in range(2 * furthest + 1)
            if np.array_equal(padded[down : down + 28, right : right + 28], after)
        ]
        assert len(fits) == 1
        moves.update(fits)
    assert len(moves) > min(furthest, 1) * 3


def test_a_batch_depends_on_seed_and_step_alone(tiny: Any) -> None:
    for task in ("image", "text"):
        one, other, third = (make_task(tiny(task, seed=seed)) for seed in (0, 0, 1))
        other.batch(0)
        assert all(torch.equal(a, b) for a, b in zip(one.batch(5), other.batch(5), strict=True))
        assert not torch.equal(one.batch(5).inputs, one.batch(6).inputs)
        assert not torch.equal(one.batch(5).inputs, third.batch(5).inputs)


def test_test_images_are_as_they_are_and_each_batch_mixes_the_classes(tiny: Any) -> None:
    task = make_task(tiny())
    batches = list(task.evaluation())
    assert sum(len(batch.targets) for batch in batches) == 1000
    for batch in batches:
        assert batch.targets.bincount(minlength=10).tolist() == [20] * 10
        assert torch.equal(batch.domain, batch.targets)
    again = list(make_task(tiny(seed=9)).evaluation())
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(batches, again, strict=True))


def test_an_image_code_is_one_bit_a_cell() -> None:
    pixels = torch.zeros(1, 28, 28)
    pixels[0, 7:14, 21:28] = 1.0
    flat = pixels.view(1, 784)
    cells = [[pixels[0, r * 7 : r * 7 + 7, c * 7 : c * 7 + 7].mean().item() for c in range(4)] for r in range(4)]
    assert coarse(flat).view(4, 4).tolist() == pytest.approx(np.array(cells))
    assert image_codes(flat, torch.full((16,), 0.5)).tolist() == [1 << (1 * 4 + 3)]


def test_equal_images_have_equal_codes_and_codes_spread(tiny: Any) -> None:
    codes = torch.cat([batch.token_ids for batch in make_task(tiny()).evaluation()])
    assert 300 < len(codes.unique()) < 1000
    assert 0 <= int(codes.min()) <= int(codes.max()) < 1 << 16


def test_each_text_batch_of_the_evaluation_mixes_the_domains(tiny: Any) -> None:
    task = make_task(tiny("text", evaluation_windows=4))
    batches = list(task.evaluation())
    assert [batch.domain.tolist() for batch in batches] == [[0, 1] * 4]
    assert batches[0].inputs.shape == (8, 16)
    assert torch.equal(batches[0].inputs[:, 1:], batches[0].targets[:, :-1])


def test_bits_per_byte_of_a_known_distribution(tiny: Any) -> None:
    task = make_task(tiny("text"))
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125])).expand(1, 3, 4)
    bits = task.score(logits, torch.tensor([[0, 1, 3]]))
    assert bits.tolist() == [pytest.approx([1.0, 2.0, 3.0])]
    uniform = task.score(torch.zeros(2, 5, 256), torch.zeros(2, 5, dtype=torch.int64))
    assert uniform.flatten().tolist() == pytest.approx([math.log2(256)] * 10)


def test_accuracy_counts_right_answers(tiny: Any) -> None:
    score = make_task(tiny()).score(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    assert score.tolist() == [1.0, 0.0]


@given(st.text(max_size=30))
def test_the_tokens_of_a_text_join_to_the_text(text: str) -> None:
    raw = text.encode("utf-8", errors="replace")
    tokens = byte_tokens(torch.tensor(list(raw), dtype=torch.int64))
    assert len(tokens) == len(raw)
    assert "".join(tokens) == raw.decode()


@given(st.binary(max_size=40))
def test_any_bytes_give_one_token_each(raw: bytes) -> None:
    tokens = byte_tokens(torch.tensor(list(raw), dtype=torch.int64))
    assert len(tokens) == len(raw)
    assert "".join(tokens).replace("\ufffd", "") == raw.decode(errors="ignore").replace("\ufffd", "")


def test_a_batch_splits_into_equal_parts_in_order() -> None:
    batch = Batch(*(torch.arange(6) + 10 * field for field in range(4)))
    parts = batch.split(3)
    assert [part.targets.tolist() for part in parts] == [[10, 11], [12, 13], [14, 15]]
    assert all(len(part) == 4 for part in parts)


def test_the_view_shows_digits_with_pixels_and_texts_of_each_domain(tiny: Any) -> None:
    (shown, fields), *rest = make_task(tiny()).view()
    assert rest == []
    assert len(fields["tokens"]) == len(fields["pixels"]) == len(shown.targets) == 100
    assert np.array(fields["pixels"]).shape == (100, 28, 28)
    assert 0 <= np.min(fields["pixels"]) < np.max(fields["pixels"]) <= 255
    texts = make_task(tiny("text")).view()
    assert [fields["domain"] for _, fields in texts] == ["signs", "signs", "words", "words"]
    assert all(len(fields["tokens"]) == 16 for _, fields in texts)
