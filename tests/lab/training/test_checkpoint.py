import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moegate.lab.training.checkpoint import Checkpoint, digest, load_checkpoint, save_checkpoint, write_whole

TENSORS = {
    "float": torch.tensor([[1.5, -0.0], [float("inf"), 1e-45]]),
    "narrow": torch.tensor([0.1, 3.0], dtype=torch.bfloat16),
    "wide": torch.tensor(1 / 3, dtype=torch.float64),
    "counts": torch.tensor([2**62, -1]),
    "flags": torch.tensor([True, False]),
    "state": torch.arange(256, dtype=torch.uint8),
    "none": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).T,
}
METADATA = {"step": 7, "window": {"loss_sum": 0.1 + 0.2}, "name": "ü"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Checkpoint(TENSORS, METADATA))
    return path


def test_everything_comes_back_bit_for_bit(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.metadata == METADATA
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert loaded.tensors[name].tolist() == tensor.tolist(), name


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    shared = torch.ones(4)
    save_checkpoint(tmp_path / "c", Checkpoint({"all": shared, "part": shared[:2]}, {}))
    assert load_checkpoint(tmp_path / "c").tensors["part"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_checkpoint(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(path, Checkpoint({"new": torch.ones(1)}, {"step": 8}))
    assert load_checkpoint(path).metadata == METADATA
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_half_written_temporary_file_of_a_killed_process_does_no_harm(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").write_bytes(b"half")
    save_checkpoint(path, Checkpoint({"new": torch.ones(1)}, {"step": 8}))
    assert load_checkpoint(path).metadata == {"step": 8}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(16), *range(16, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path)


def test_every_changed_byte_of_the_tensors_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(0)
    for place in [first, len(whole) - 1, *generator.sample(range(first, len(whole)), 40)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged.*Delete it"):
            load_checkpoint(path)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no checkpoint of a moegate run"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_checkpoint(tmp_path / "none")


def test_the_digest_tells_names_types_and_shapes_apart() -> None:
    zeros = torch.zeros(4)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(2, 2)},
        {"a": zeros.to(torch.int32)},
        {"a": zeros, "b": zeros},
        {},
    ]
    assert len({digest(variant) for variant in variants}) == len(variants)


def test_a_file_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.json", json.dumps([1]).encode())
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == [1]
