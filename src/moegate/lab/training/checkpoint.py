"""Checkpoints: one safetensors file that holds all of a run's state, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = "moegate.checkpoint.v1"


class Checkpoint(NamedTuple):
    """The tensors of a run by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never half of it.

    The bytes go to a temporary neighbour, reach the disk, and then take the name in one step.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a.txt"), b"all")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically, with a digest of its tensors.

    Tensors and metadata share one file, so that no interruption can leave a model of one step beside an optimizer
    of another.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "checkpoint.safetensors")
        ...     save_checkpoint(path, Checkpoint({"a": torch.ones(2)}, {"step": 3}))
        ...     load_checkpoint(path).metadata
        {'step': 3}

    Source: the safetensors format, https://github.com/huggingface/safetensors.
    """
    # clone: parameters that share storage are refused by safetensors.
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    header = {"format": FORMAT, "digest": digest(tensors), "metadata": json.dumps(dict(checkpoint.metadata))}
    write_whole(path, save(tensors, metadata=header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged, or that is no checkpoint of this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    advice = "Delete it to start the run again, or restore it from a copy."
    # One read, and not a mapping of the file: a run that is still going may replace it meanwhile.
    raw = path.read_bytes()
    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise ValueError(f"The checkpoint {path} is damaged ({error}). {advice}") from error
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of a moegate run. {advice}")
    if header.get("digest") != digest(tensors):
        raise ValueError(f"The checkpoint {path} is damaged (its tensors don't match their digest). {advice}")
    return Checkpoint(tensors, json.loads(header["metadata"]))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of tensors.

    Example:
        >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)})
        True
        >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(1, 2)})
        False
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
