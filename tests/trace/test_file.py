"""Traces in files: what goes in comes out; what is damaged is refused with a sentence."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegate.trace import Trace, load, save


def trace(num_tokens=10, **changes):
    experts = (4, 200, 8)
    indices = torch.stack([torch.randint(0, count, (num_tokens, 2)) for count in experts], dim=1)
    fields = {
        "indices": indices,
        "layers": ("a", "b", "c"),
        "num_experts": experts,
        "weights": torch.rand(num_tokens, 3, 2),
        "logits": torch.randn(num_tokens, 3, 200),
        "token_ids": torch.arange(num_tokens),
        "document_ids": torch.arange(num_tokens) // 4,
        "domain_ids": torch.arange(num_tokens) % 2,
        "domains": ("code", "prose"),
        "calls": torch.arange(num_tokens) // 5,
        "phases": torch.arange(num_tokens) % 3,
        "metadata": {"model": "é", "rules": [{"x": 1}, None, {}]},
    }
    return Trace(**(fields | changes))


COLUMNS = ("weights", "logits", "token_ids", "document_ids", "domain_ids", "calls", "phases")


def test_what_goes_in_comes_out(tmp_path):
    before = trace()
    path = save(before, tmp_path / "run.safetensors")
    after = load(path)
    assert torch.equal(after.indices, before.indices.to(torch.int16))
    assert after.indices.dtype == torch.int16
    for name in COLUMNS:
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert (after.layers, after.num_experts, after.domains) == (before.layers, before.num_experts, before.domains)
    assert after.metadata == before.metadata
    assert torch.equal(after.load, before.load)


@pytest.mark.parametrize(
    ("num_experts", "dtype"), [(128, torch.int8), (129, torch.int16), (32768, torch.int16), (32769, torch.int32)]
)
def test_the_smallest_integers_that_fit(tmp_path, num_experts, dtype):
    indices = torch.tensor([[[-1, num_experts - 1]]])
    path = save(Trace(indices, ("a",), (num_experts,)), tmp_path / "run.safetensors")
    assert load(path).indices.dtype == dtype
    assert load(path).indices.tolist() == indices.tolist()


def test_others_can_read_it(tmp_path):
    before = trace()
    tensors = load_file(save(before, tmp_path / "run.safetensors"))
    assert torch.equal(tensors["weights"], before.weights)
    assert torch.equal(tensors["indices"], before.indices.to(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_weights(tmp_path, dtype):
    before = trace()
    after = load(save(before, tmp_path / "run.safetensors", weights_dtype=dtype))
    assert torch.equal(after.weights, before.weights.to(dtype))
    assert after.logits.dtype == dtype
    kept = load(save(trace(weights=before.weights.to(dtype)), tmp_path / "run.safetensors"))
    assert kept.weights.dtype == dtype


@pytest.mark.parametrize("shape", [(0, 3, 2), (0, 3, 0), (5, 3, 0)])
def test_nothing_in_it(tmp_path, shape):
    empty = Trace(torch.full(shape, -1), ("a", "b", "c"), (4, 4, 4))
    assert load(save(empty, tmp_path / "run.safetensors")).indices.shape == shape
    none = Trace(torch.zeros(3, 0, 2, dtype=torch.int64), (), ())
    assert load(save(none, tmp_path / "none.safetensors")).indices.shape == (3, 0, 2)


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path):
    path = save(trace(), tmp_path / "run.safetensors")
    before = path.read_bytes()
    load(path).indices.fill_(0)
    assert path.read_bytes() == before


def test_a_trace_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "run.safetensors"
    save(trace(4), path)
    opened = load(path)
    save(trace(8), path)
    assert (len(opened), len(load(path))) == (4, 8)
    assert len(opened.indices.tolist()) == 4  # what was read before stays readable
    for name, content in {"notes.txt": b"dear diary", "empty": b"", "cut.safetensors": path.read_bytes()[:-1]}.items():
        other = tmp_path / name
        other.write_bytes(content)
        with pytest.raises(ValueError, match="is there already and is no trace"):
            save(trace(), other)
        assert other.read_bytes() == content
    save_file({"indices": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is no trace"):
        save(trace(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is no trace"):
        save(trace(), tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save(trace(), tmp_path / "nowhere" / "run.safetensors")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(trace(4), tmp_path / "run.safetensors")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(trace(8), path)
    assert len(load(path)) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_killed_while_saving(tmp_path):
    """The process dies in the middle of the data: the old file is there, whole."""
    path = save(trace(4), tmp_path / "run.safetensors")
    program = f"""
import os, torch
from moegate.trace import Trace, save
from moegate.trace import container
real = container.data_of
def dying(tensor):
    yield_of = real(tensor)
    if tensor.is_floating_point():
        os._exit(9)
    return yield_of
import moegate.trace.file as file
file.data_of = dying
save(Trace(torch.zeros(8, 1, 1, dtype=torch.int64), ("a",), (2,), weights=torch.ones(8, 1, 1)), {str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=100)
    assert done.returncode == 9
    assert len(load(path)) == 4


def parts(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(path, head, data):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_head(change):
    def apply(path):
        head, data = parts(path)
        change(head)
        put(path, head, data)

    return apply


def change_text(change):
    def apply(path):
        head, data = parts(path)
        put(path, change(json.dumps(head).encode()), data)

    return apply


def change_description(change):
    def apply(path):
        head, data = parts(path)
        described = json.loads(head["__metadata__"]["trace"])
        changed = change(described)
        head["__metadata__"]["trace"] = json.dumps(described if changed is None else changed)
        put(path, head, data)

    return apply


def change_index(value):
    def apply(path):
        head, data = parts(path)
        begin = head["indices"]["data_offsets"][0]
        put(path, head, data[:begin] + struct.pack("<h", value) + data[begin + 2 :])

    return apply


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def moved(head, name, by):
    head[name]["data_offsets"] = [offset + by for offset in head[name]["data_offsets"]]


DAMAGES = {
    "nothing": (cut(0), "ends after 0 bytes"),
    "cut in the length": (cut(5), "ends after 5 bytes"),
    "cut in the header": (cut(100), "announce a header of"),
    "cut in the data": (cut(-1), "it is cut: its header announces"),
    "cut before the data": (cut(-9000), "it is cut"),
    "more at the end": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "1 bytes follow its last tensor"),
    "a huge header": (
        lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]),
        "announce a header of 18446744073709551615",
    ),
    "not JSON": (change_text(lambda text: b"(" + text[1:]), "header is no valid JSON"),
    "not UTF-8": (change_text(lambda text: b"\xff" + text[1:]), "header is no valid JSON"),
    "deep JSON": (change_text(lambda text: b"[" * 100000), "header is no valid JSON"),
    "a list": (change_text(lambda text: b"[]"), "header is no JSON object"),
    "a key twice": (change_text(lambda text: text[:-1] + b', "indices": 3}'), "'indices' is there twice"),
    "a key twice within": (
        change_text(lambda text: text.replace(b'"shape":', b'"dtype": "I8", "shape":', 1)),
        "'dtype' is there twice",
    ),
    "metadata no strings": (change_head(lambda h: h["__metadata__"].update(trace=3)), "metadata are no strings"),
    "metadata a list": (change_head(lambda h: h.update(__metadata__=[])), "metadata are no strings"),
    "no metadata": (change_head(lambda h: h.pop("__metadata__")), "a safetensors file but no trace"),
    "no description": (change_head(lambda h: h["__metadata__"].pop("trace")), "have no description"),
    "another dtype": (change_head(lambda h: h["indices"].update(dtype="U16")), "dtype 'U16', which no trace has"),
    "a dtype of no name": (change_head(lambda h: h["indices"].update(dtype=["I16"])), "which no trace has"),
    "floating indices": (change_head(lambda h: h["indices"].update(dtype="F16")), "indices must be .* signed integers"),
    "integer weights": (change_head(lambda h: h["weights"].update(dtype="I32")), "weights must be a floating-point"),
    "a huge shape": (change_head(lambda h: h["indices"].update(shape=[2**40, 3, 2])), "its shape and dtype need"),
    "a product that overflows": (
        change_head(lambda h: h["indices"].update(shape=[2**62, 2**62, 16])),
        "its shape and dtype need",
    ),
    "a number too long": (
        change_text(lambda t: t.replace(b'"shape": [10, 3, 2]', b'"shape": [' + b"9" * 5000 + b"]", 1)),
        "header is no valid JSON",
    ),
    "a negative shape": (
        change_head(lambda h: h["indices"].update(shape=[-10, -3, 2])),
        r"has the shape \[-10, -3, 2\]",
    ),
    "a shape of words": (change_head(lambda h: h["indices"].update(shape="10")), "has the shape '10'"),
    "a true shape": (change_head(lambda h: h["indices"].update(shape=[True, 3, 2])), "has the shape"),
    "many axes": (change_head(lambda h: h["indices"].update(shape=[10, 3, 2] + [1] * 60)), "has the shape"),
    "another shape": (change_head(lambda h: h["indices"].update(shape=[3, 10, 2])), "num_experts must have a number"),
    "two axes": (change_head(lambda h: h["indices"].update(shape=[30, 2])), "indices must have the shape"),
    "weights of another shape": (
        change_head(lambda h: h["weights"].update(shape=[10, 2, 3])),
        "weights must have the shape",
    ),
    "backward offsets": (
        change_head(lambda h: h["indices"]["data_offsets"].reverse()),
        "has the data_offsets",
    ),
    "offsets missing": (change_head(lambda h: h["indices"].pop("data_offsets")), "not described by dtype, shape"),
    "overlapping": (change_head(lambda h: moved(h, "indices", -2)), "overlaps another or leaves a gap"),
    "a gap": (change_head(lambda h: moved(h, "indices", 2)), "overlaps another or leaves a gap"),
    "no tensor at all": (change_head(lambda h: h.update(indices=7)), "not described by dtype, shape"),
    "no indices": (change_head(lambda h: h.update(index=h.pop("indices"))), "has the unknown tensor 'index'"),
    "no JSON inside": (change_head(lambda h: h["__metadata__"].update(trace="{")), "description is no valid JSON"),
    "a list inside": (change_description(lambda d: []), "description has no version"),
    "no version": (change_description(lambda d: d.pop("version") and None), "description has no version"),
    "a later version": (
        change_description(lambda d: d.update(version=2)),
        "version 2, and this moegate reads version 1",
    ),
    "other phases": (change_description(lambda d: d.update(phases=["forward"])), "its phases are"),
    "layers of another number": (change_description(lambda d: d.update(layers=["a", "b"])), "layers must name each"),
    "layers twice": (change_description(lambda d: d.update(layers=["a", "b", "a"])), "'a' is there twice"),
    "layers of no names": (
        change_description(lambda d: d.update(layers=[1, 2, 3])),
        "layers must be a tuple of strings",
    ),
    "no layers": (change_description(lambda d: d.update(layers="abc")), "has no list 'layers'"),
    "experts of words": (change_description(lambda d: d.update(num_experts=["4", "200", "8"])), "tuple of integers"),
    "fewer experts": (change_description(lambda d: d.update(num_experts=[4, 200, 1])), "indices of layer 'c' must be"),
    "no experts": (change_description(lambda d: d.update(num_experts=[0, 200, 8])), "num_experts must be from 1 up"),
    "too many experts": (
        change_description(lambda d: d.update(num_experts=[4, 2**80, 8])),
        "num_experts must be from 1",
    ),
    "fewer domains": (change_description(lambda d: d.update(domains=["code"])), "domain_ids must be from -1 to 0"),
    "an index too high": (change_index(4), "indices of layer 'a' must be experts from 0 to 3, .* got"),
    "an index too low": (change_index(-2), "indices of layer 'a' must be"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(tmp_path, damage):
    path = save(trace(), tmp_path / "run.safetensors")
    hurt, message = DAMAGES[damage]
    hurt(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert sentence.endswith((".", ").")) or "read it with" in sentence
    assert len(sentence) < 700


def test_any_byte_of_the_header_and_any_cut(tmp_path):
    """Whatever is changed, it is read or it is refused: nothing else happens."""
    path = save(trace(3), tmp_path / "run.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        place = int(torch.randint(0, 8 + length, (), generator=generator))
        value = int(torch.randint(0, 256, (), generator=generator))
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        try:
            load(path)
        except ValueError:
            refused += 1
    assert refused > 200
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            load(path)


def test_any_byte_of_the_data(tmp_path):
    """Also one that leaves a trace that could be."""
    path = save(trace(), tmp_path / "run.safetensors")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load(tmp_path / "missing")
    with pytest.raises(ValueError, match="it is a directory"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        load(tmp_path / "pipe")
    save_file({"indices": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="a safetensors file but no trace"):
        load(tmp_path / "weights.safetensors")
    torch.save({"indices": torch.zeros(1)}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="announce a header"):
        load(tmp_path / "pickle.pt")


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"trace must be a moegate\.trace\.Trace, got dict"):
        save({}, tmp_path / "x")
    with pytest.raises(TypeError, match="weights_dtype must be a floating-point"):
        save(trace(), tmp_path / "x", weights_dtype=torch.int8)
