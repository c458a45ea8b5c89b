"""Files with random damage: each is read, or refused with a sentence that names the file."""

import base64
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from moegate.trace import read

ROUNDS = 150


def npy(path: Path, indices: np.ndarray) -> None:
    np.save(path, indices)


def npz(path: Path, indices: np.ndarray) -> None:
    np.savez_compressed(path, routed_experts=indices, token_ids=np.arange(len(indices)))


def response(path: Path, indices: np.ndarray) -> None:
    encoded = base64.b64encode(indices.tobytes()).decode()
    envelope = f"nrlre1:{indices.dtype.name}:{'x'.join(map(str, indices.shape))}:{encoded}"
    choices = [{"token_ids": [1, 2, 3], "routed_experts": indices.tolist()}, {"routed_experts": envelope}]
    path.write_text(json.dumps({"prompt_routed_experts": indices.tolist(), "choices": choices}))


def recorder(path: Path, indices: np.ndarray) -> None:
    records = [{"topk_ids_of_layer": torch.from_numpy(indices).transpose(0, 1), "input_ids": list(range(len(indices)))}]
    torch.save({"records": records, "last_physical_to_logical_map": torch.arange(9).repeat(3, 1)}, path)


def recorded_counts(path: Path, indices: np.ndarray) -> None:
    torch.save({"logical_count": torch.from_numpy(indices)}, path)


def activations(path: Path, indices: np.ndarray) -> None:
    path.write_text("".join(f"{layer},{expert}\n" for row in indices for layer, k in enumerate(row) for expert in k))


def tokens(path: Path, indices: np.ndarray) -> None:
    lines = (f'{layer},"{" ".join(map(str, experts))}"\n' for row in indices for layer, experts in enumerate(row))
    path.write_text("layer_id,experts\n" + "".join(lines))


def counts(path: Path, indices: np.ndarray) -> None:
    path.write_text(json.dumps({str(layer): {"0": 1, "5": 7.5} for layer in range(indices.shape[1])}))


def steps(path: Path, indices: np.ndarray) -> None:
    path.write_text("\n".join(json.dumps({"layer_id": 3, "load": row.tolist()}) for row in indices[:, 0]))


WRITERS = {
    "a.npy": npy,
    "a.npz": npz,
    "a.json": response,
    "a.pt": recorder,
    "b.pt": recorded_counts,
    "a.csv": activations,
    "b.csv": tokens,
    "b.json": counts,
    "b.jsonl": steps,
}


def damaged(content: bytes, random: Random) -> bytes:
    """A few bytes changed, taken out or put in, or the end cut off."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed))
        kind = random.randrange(4)
        if kind == 0:
            changed[at] = random.randrange(256)
        elif kind == 1:
            del changed[at : at + random.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = bytes(random.choices(b'0123456789-eE.,:[]{}"x \n\x00\xff', k=random.randint(1, 8)))
        else:
            del changed[at:]
        if not changed:
            return b"x"
    return bytes(changed)


@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_refused_with_a_sentence_or_read(tmp_path: Path, indices_TLK: np.ndarray, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, indices_TLK)
    content = path.read_bytes()
    assert read(path).num_layers == 3 or name == "b.jsonl"
    random = Random(name)
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(content, random))
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert name in str(error), error
            assert "\n" not in str(error), error
    assert refused > ROUNDS // 10
