"""``routed_experts`` as arrays and in responses of servers."""

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegate.trace import Trace, read
from moegate.trace.importers import archives
from moegate.trace.importers.building import ASSUMED

PROMPT_IDS = [11, 12, 13]
COMPLETION_IDS = [21, 22, 23, 24]


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def envelope(array: np.ndarray, *, dims: str | None = None) -> str:
    sizes = dims or "x".join(map(str, array.shape))
    return f"nrlre1:{array.dtype.name}:{sizes}:{base64_of(array.tobytes())}"


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def as_trace(path: Path, **options: Any) -> Trace:
    trace = read(path, **options)
    assert isinstance(trace, Trace)
    return trace


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", ">i4", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_any_integers(tmp_path: Path, indices_TLK: np.ndarray, dtype: str, order: str) -> None:
    np.save(tmp_path / "routed.npy", np.asarray(indices_TLK.astype(dtype), order=order))
    trace = as_trace(tmp_path / "routed.npy")
    assert np.array_equal(trace.indices.numpy(), indices_TLK)
    assert trace.indices.dtype == torch.int8
    assert trace.num_experts == (9, 9, 9)
    assert trace.metadata["notes"] == [ASSUMED]


def test_a_number_of_experts_that_is_passed_is_taken(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    np.save(tmp_path / "routed.npy", indices_TLK)
    trace = as_trace(tmp_path / "routed.npy", num_experts=200)
    assert trace.num_experts == (200,) * 3
    assert trace.indices.dtype == torch.int16
    assert trace.metadata["notes"] == []
    with pytest.raises(ValueError, match="expert index 8, but num_experts is 8"):
        read(tmp_path / "routed.npy", num_experts=8)


def test_empty_slots_of_signed_and_of_unsigned_arrays(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    indices_TLK[2, 1] = -1
    np.save(tmp_path / "signed.npy", indices_TLK)
    np.save(tmp_path / "unsigned.npy", indices_TLK.astype(np.uint8))
    for name in ("signed", "unsigned"):
        assert np.array_equal(as_trace(tmp_path / f"{name}.npy", num_experts=9).indices.numpy(), indices_TLK)


def test_a_zip_of_prompt_and_completion(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    np.savez_compressed(
        tmp_path / "routed.npz",
        prompt_routed_experts=indices_TLK[:3],
        routed_experts=indices_TLK[3:],
        prompt_token_ids=PROMPT_IDS,
        token_ids=[*COMPLETION_IDS, 99],
    )
    trace = as_trace(tmp_path / "routed.npz")
    assert np.array_equal(trace.indices.numpy(), indices_TLK)
    assert trace.token_ids is not None and trace.token_ids.tolist() == [*PROMPT_IDS, *COMPLETION_IDS]


def test_arrays_of_any_names_in_a_zip_are_sequences(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    np.savez(tmp_path / "routed.npz", a=indices_TLK, b=indices_TLK[:2])
    trace = as_trace(tmp_path / "routed.npz")
    assert trace.document_ids is not None and trace.document_ids.tolist() == [0] * 7 + [1] * 2


ENCODINGS = {
    "lists": lambda array: array.tolist(),
    "npy": lambda array: base64_of(npy_bytes(array)),
    "envelope": envelope,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_vllm_with_the_prompt_apart_and_two_completions(tmp_path: Path, indices_TLK: np.ndarray, encoding: str) -> None:
    encode = ENCODINGS[encoding]
    response = {
        "prompt_token_ids": PROMPT_IDS,
        "prompt_routed_experts": encode(indices_TLK[:3]),
        "choices": [
            {"index": 0, "token_ids": COMPLETION_IDS, "routed_experts": encode(indices_TLK[3:])},
            {"index": 1, "token_ids": [31, 32], "routed_experts": encode(indices_TLK[5:])},
        ],
    }
    trace = as_trace(written(tmp_path / "response.json", response))
    assert np.array_equal(trace.indices.numpy(), np.concatenate([indices_TLK, indices_TLK[5:]]))
    assert trace.token_ids is not None and trace.token_ids.tolist() == [*PROMPT_IDS, *COMPLETION_IDS, 31, 32]
    assert trace.document_ids is not None and trace.document_ids.tolist() == [0] * 7 + [1] * 2


@pytest.mark.parametrize("indent", [None, 2])
def test_bare_lists_however_they_are_written(tmp_path: Path, indices_TLK: np.ndarray, indent: int | None) -> None:
    path = written(tmp_path / "r.json", json.dumps(indices_TLK.tolist(), indent=indent))
    assert np.array_equal(as_trace(path).indices.numpy(), indices_TLK)


def test_one_array_of_all_tokens_but_the_last(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    output = {"token_ids": [*COMPLETION_IDS, 25], "routed_experts": indices_TLK.tolist()}
    trace = as_trace(written(tmp_path / "out.json", {"prompt_token_ids": PROMPT_IDS, "outputs": [output]}))
    assert trace.token_ids is not None and trace.token_ids.tolist() == [*PROMPT_IDS, *COMPLETION_IDS]


def test_a_prompt_without_a_completion(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    response = {"prompt_routed_experts": indices_TLK.tolist(), "choices": [{"text": "", "routed_experts": None}]}
    assert np.array_equal(as_trace(written(tmp_path / "r.json", response)).indices.numpy(), indices_TLK)


def test_token_ids_that_do_not_fit_are_left_out(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    responses = [
        {"prompt_token_ids": [1], "token_ids": [2], "routed_experts": indices_TLK.tolist()},
        {"token_ids": list(range(7)), "routed_experts": indices_TLK.tolist()},
    ]
    trace = as_trace(written(tmp_path / "r.json", responses))
    assert trace.token_ids is not None and trace.token_ids.tolist() == [-1] * 7 + list(range(7))


def sglang(array: np.ndarray, completion_tokens: int) -> dict[str, Any]:
    meta = {"prompt_tokens": 3, "completion_tokens": completion_tokens}
    return {
        "text": "x",
        "output_ids": list(range(completion_tokens)),
        "meta_info": {**meta, "routed_experts": base64_of(array.astype("<i4").tobytes())},
    }


@pytest.mark.parametrize("options", [{"num_layers": 3}, {"top_k": 2}, {"num_layers": 3, "top_k": 2}])
def test_sglang_with_what_its_shape_needs(tmp_path: Path, indices_TLK: np.ndarray, options: dict[str, int]) -> None:
    path = written(tmp_path / "response.json", [sglang(indices_TLK, 5), sglang(indices_TLK, 5)])
    trace = as_trace(path, **options)
    assert np.array_equal(trace.indices.numpy(), np.concatenate([indices_TLK] * 2))


def test_sglang_without_a_shape_says_what_to_pass(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    path = written(tmp_path / "response.json", sglang(indices_TLK, 5))
    with pytest.raises(ValueError, match=r"response\.json\.meta_info.*without a shape.*--layers, --top-k"):
        read(path)


def test_sglang_in_other_integers(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    value = {"sglext": {"routed_experts": base64_of(indices_TLK.astype(np.uint8).tobytes())}}
    path = written(tmp_path / "response.json", value)
    trace = as_trace(path, num_layers=3, top_k=2, dtype="uint8")
    assert np.array_equal(trace.indices.numpy(), indices_TLK)
    with pytest.raises(ValueError, match="don't make"):
        read(path, num_layers=3, top_k=2)
    with pytest.raises(ValueError, match="the type 'float32' is none of"):
        read(path, num_layers=3, top_k=2, dtype="float32")


@pytest.mark.parametrize("quotes", ["", '"'])
def test_base64_alone_a_line_a_sequence(tmp_path: Path, indices_TLK: np.ndarray, quotes: str) -> None:
    texts = [base64_of(part.astype("int32").tobytes()) for part in (indices_TLK[:2], indices_TLK[2:])]
    path = written(tmp_path / "routed.txt", "".join(f"{quotes}{text}{quotes}\n" for text in texts))
    trace = as_trace(path, num_layers=3, top_k=2)
    assert np.array_equal(trace.indices.numpy(), indices_TLK)
    assert trace.document_ids is not None and trace.document_ids.tolist()[:3] == [0, 0, 1]
    with pytest.raises(ValueError, match="Pass num_layers and top_k"):
        read(path)


@pytest.mark.parametrize(
    "head", ["int16:{}x{}x{}", "int16:{},{},{}", "int16:({}, {}, {})", "torch.int16:{}x{}x{}", "<i2:{}x{}x{}"]
)
def test_envelopes_however_their_type_and_sizes_are_spelled(tmp_path: Path, indices_TLK: np.ndarray, head: str) -> None:
    text = f"nrlre1:{head.format(*indices_TLK.shape)}:{base64_of(indices_TLK.astype('<i2').tobytes())}"
    trace = as_trace(written(tmp_path / "e.json", {"routed_experts": text}))
    assert np.array_equal(trace.indices.numpy(), indices_TLK)


def test_bytes_behind_an_array_are_refused(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    content = npy_bytes(indices_TLK)
    for more in (b"\0", content):
        (tmp_path / "a.npy").write_bytes(content + more)
        with pytest.raises(ValueError, match="bytes follow the array"):
            read(tmp_path / "a.npy")


def test_envelopes_as_a_text_and_as_lines(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    text = written(tmp_path / "routes.txt", f"{envelope(indices_TLK)}\n{envelope(indices_TLK[:1])}\n")
    lines = written(tmp_path / "routes.jsonl", f'{{"routed_experts": "{envelope(indices_TLK)}"}}\n')
    assert as_trace(text).num_tokens == 8
    assert np.array_equal(as_trace(lines).indices.numpy(), indices_TLK)


HOSTILE = {
    "ragged": ([[[1, 2]], [[3]]], "ragged"),
    "deeper": ([[[[1]]]], "expected integers"),
    "fractions": ([[[0.5, 1.0]]], "not all entries are whole numbers"),
    "nan": ([[[float("nan"), 1]]], "not all entries are whole numbers"),
    "words": ([[["a", "b"]]], "not all entries are whole numbers"),
    "huge": ([[[10**30]]], "whole numbers|ragged"),
    "negative": ([[[-2, 1]]], "the expert index -2"),
    "beyond": ([[[70_000, 1]]], "more than any model has experts"),
    "object": ({"a": 1}, "lists or base64 text"),
    "no base64": ("???", "no base64"),
    "cut base64": (base64_of(b"abcd" * 9)[:-3], "no base64, or it is cut"),
    "cut npy": (base64_of(npy_bytes(np.zeros((4, 2, 2), np.int16))[:-6]), "is cut"),
    "float npy": (base64_of(npy_bytes(np.zeros((4, 2, 2)))), "float64"),
    "envelope of 2 sizes": ("nrlre1:int16:2x1:AAAA", "is not nrlre1"),
    "envelope of huge sizes": ("nrlre1:int16:999999999999x9999x9999:AAAA", "don't make"),
    "envelope of negative sizes": ("nrlre1:int16:-1x1x-2:AAAAAA==", "is not nrlre1"),
    "envelope cut": ("nrlre1:int16:2x1x2:AAABAAIA", "don't make 2x1x2"),
    "envelope of floats": ("nrlre1:float32:1x1x1:AAAAAA==", "the type 'float32'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_a_sentence_with_the_place(tmp_path: Path, case: str) -> None:
    value, message = HOSTILE[case]
    path = written(tmp_path / "r.json", {"choices": [{"routed_experts": value}]})
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "r.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", '{"routed_experts": [[[1, 2', "[" * 100_000, '{"routed_experts": null}', "[[[]]]"]
)
def test_cut_and_empty_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"r\.json"):
        read(written(tmp_path / "r.json", text))


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    lines = '{"routed_experts": [[[1, 2]]]}\n\n{"routed_experts": [[[1, 2'
    with pytest.raises(ValueError, match=r"r\.jsonl, line 3 is no JSON"):
        read(written(tmp_path / "r.jsonl", lines))


def test_sequences_of_two_models_are_refused(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    responses = [{"routed_experts": indices_TLK.tolist()}, {"routed_experts": indices_TLK[:, :2].tolist()}]
    with pytest.raises(ValueError, match=r"2 layers and top_k 2, but .* has 3 and 2"):
        read(written(tmp_path / "r.json", responses))


def header_of(shape: str, descr: str = "'<i2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


@pytest.mark.parametrize(
    "shape", ["(10000000000000, 58, 8)", "(-1, -1, 2)", "(99999999999999999999999, 1, 1)", "(3, 2, 2)"]
)
def test_sizes_that_a_header_claims_are_not_believed(tmp_path: Path, shape: str) -> None:
    content = header_of(shape) + b"\0" * 8
    (tmp_path / "r.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        archive.writestr("routed_experts.npy", content)
    for name in ("r.npy", "r.npz"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)


def test_no_object_array_is_unpickled(tmp_path: Path, malicious: Any) -> None:
    array = np.array([malicious], dtype=object)
    np.save(tmp_path / "r.npy", array, allow_pickle=True)
    np.savez(tmp_path / "r.npz", routed_experts=array)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(malicious))
    written(tmp_path / "r.json", {"routed_experts": base64_of((tmp_path / "r.npy").read_bytes())})
    for name in ("r.npy", "r.npz", "r.json"):
        with pytest.raises(ValueError, match="Python objects, which are not read because they can run code"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="none of the formats"):
        read(tmp_path / "bare.npy")
    with pytest.raises(ValueError, match="no NumPy array"):
        read(tmp_path / "bare.npy", "npy")


@pytest.mark.parametrize("keep", [3, 20, 90, -40])
def test_a_cut_zip_is_a_sentence(tmp_path: Path, indices_TLK: np.ndarray, keep: int) -> None:
    np.savez_compressed(tmp_path / "r.npz", routed_experts=indices_TLK)
    (tmp_path / "r.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"r\.npz"):
        read(tmp_path / "r.npz")
    with pytest.raises(ValueError, match=r"r\.npz"):
        read(tmp_path / "r.npz", "npz")


def test_a_damaged_zip_is_a_sentence(tmp_path: Path, indices_TLK: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "r.npz", routed_experts=indices_TLK)
    content = bytearray((tmp_path / "r.npz").read_bytes())
    content[80:90] = b"\xff" * 10
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.npz"):
        read(tmp_path / "r.npz")


def test_an_archive_is_not_unpacked_beyond_a_limit(
    tmp_path: Path, indices_TLK: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "r.npz", routed_experts=np.zeros((5000, 4, 2), np.int16))
    assert (tmp_path / "r.npz").stat().st_size < 2000
    monkeypatch.setattr(archives, "MOST_BYTES", 50_000)
    with pytest.raises(ValueError, match=r"r\.npz is cut or damaged: it says that it unpacks to 80,128 bytes"):
        read(tmp_path / "r.npz")


def test_unknown_formats_and_files(tmp_path: Path) -> None:
    path = written(tmp_path / "notes.txt", "hello\nworld\n")
    with pytest.raises(ValueError, match="none of the formats"):
        read(path)
    with pytest.raises(ValueError, match=r"Did you mean 'llama\.cpp'"):
        read(path, "llama.cp")
    with pytest.raises(FileNotFoundError, match="no file"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="num_experts is 0"):
        read(path, num_experts=0)
