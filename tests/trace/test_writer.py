"""Columns that grow: in memory, on disk, wider on the way, and after a disk that was full."""

import math

import pytest
import torch

from moegate.trace import writer
from moegate.trace.container import read_header, read_tensor
from moegate.trace.writer import Columns, Kind

KINDS = {
    "indices": Kind(torch.int16, -1, (2, 0)),
    "weights": Kind(torch.float32, 0.0, (2, 0)),
    "calls": Kind(torch.int32, -1),
}


def chunk(rows, slots, call):
    return {
        "indices": torch.full((rows, 2, slots), call),
        "weights": torch.rand(rows, 2, slots),
        "calls": torch.full((rows,), call),
    }


def padded(chunks, name, slots, fill):
    wide = [
        torch.nn.functional.pad(each[name].float(), (0, slots - each[name].shape[2]), value=fill) for each in chunks
    ]
    return torch.cat(wide)


@pytest.mark.parametrize("limit", [0, 150, 10**9])
def test_rows_in_order_and_as_wide_as_the_widest(tmp_path, limit):
    columns = Columns(KINDS, limit, tmp_path)
    assert columns.tensors()["indices"].shape == (0, 2, 0)
    chunks = [chunk(3, 2, 0), chunk(0, 1, 1), chunk(2, 4, 2), chunk(5, 1, 3)]
    for each in chunks:
        columns.append(each)
        rows = columns.tensors()
        assert len(rows["indices"]) == len(rows["weights"]) == len(rows["calls"])
    assert torch.equal(rows["indices"].float(), padded(chunks, "indices", 4, -1.0))
    assert torch.equal(rows["weights"], padded(chunks, "weights", 4, 0.0))
    assert rows["calls"].tolist() == [0] * 3 + [2] * 2 + [3] * 5
    path = tmp_path / "columns.safetensors"
    columns.write(path, {"format": "x"}, without={"weights"})
    header = read_header(path)
    assert set(header.places) == {"indices", "calls"}
    assert torch.equal(read_tensor(path, header.places["indices"]), rows["indices"])
    del columns, rows
    assert [each.name for each in tmp_path.iterdir()] == ["columns.safetensors"]


def test_no_more_than_the_limit_is_held(tmp_path):
    columns = Columns(KINDS, 1000, tmp_path)
    for call in range(50):
        columns.append(chunk(7, 2, call))
        held = sum(math.prod(part.shape) * part.element_size() for c in columns.columns.values() for part in c.chunks)
        assert held <= 1000
    assert columns.tensors()["calls"].tolist() == torch.arange(50).repeat_interleave(7).tolist()


def test_a_full_disk_loses_no_rows(tmp_path, monkeypatch):
    """A part that was written by half is written again when there is room."""
    columns = Columns(KINDS, 0, tmp_path)
    columns.append(chunk(3, 2, 0))
    real, calls = writer.data_of, []

    def full(tensor):
        calls.append(tensor)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return real(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "data_of", full)
        with pytest.raises(OSError, match="No space left"):
            columns.append(chunk(3, 2, 1))
    columns.append(chunk(2, 2, 2))
    rows = columns.tensors()
    assert rows["calls"].tolist() == [0] * 3 + [1] * 3 + [2] * 2
    assert rows["indices"][:, 0, 0].tolist() == rows["calls"].tolist()
    assert rows["weights"].shape == (8, 2, 2)
