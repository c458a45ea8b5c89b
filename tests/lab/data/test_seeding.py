"""Streams addressed by (purpose, seed, position)."""

import subprocess
import sys

import pytest
import torch

from moegate.lab.data.seeding import generator_at, require_positive, require_step


def first_draw(purpose: str, seed: int, position: int) -> int:
    return int(torch.randint(2**62, (), generator=generator_at(purpose, seed, position)))


def test_every_address_has_its_own_stream() -> None:
    addresses = [(purpose, seed, step) for purpose in ("text", "images") for seed in range(20) for step in range(50)]
    assert len({first_draw(*address) for address in addresses}) == len(addresses)


def test_the_parts_of_an_address_do_not_run_together() -> None:
    assert first_draw("text", 1, 12) != first_draw("text", 11, 2)
    assert first_draw("text", 0, -1) != first_draw("text", -1, 0)


def test_the_stream_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from moegate.lab.data.seeding import generator_at;"
        "print(int(torch.randint(2**62, (), generator=generator_at('text', 3, 4))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) == first_draw("text", 3, 4)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first_draw("text", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_huge_and_negative_seeds_are_seeds_too() -> None:
    assert len({first_draw("text", seed, 0) for seed in (2**63, -(2**63), 10**30, 0)}) == 4


@pytest.mark.parametrize("step", [1.0, "1", None])
def test_a_step_is_an_integer(step: object) -> None:
    with pytest.raises(TypeError):
        require_step(step)  # type: ignore[arg-type]


def test_negative_steps_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="step is -1: batches are numbered from 0"):
        require_step(-1)
    with pytest.raises(ValueError, match="batch_size is 0: it must be at least 1"):
        require_positive(sequence_length=1, batch_size=0)
