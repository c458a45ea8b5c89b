"""Recording: rows, masks, phases, documents, checkpointing, failures, memory; truth is taken by the tests' hooks."""

import threading

import pytest
import torch

pytest.importorskip("transformers")

from tiny_models import tiny_inputs, tiny_model
from transformers import StaticCache
from truth import Truth

from moegate.hf import moe_layers, record
from moegate.trace import PHASES, load

PAD = 0


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3_moe")


def tokens(batch=2, length=6):
    return torch.randint(3, 60, (batch, length))


def stacked(truth, calls=slice(None)):
    """``[T, L, K]``, what the tests' hooks saw, call after call."""
    return torch.stack([torch.cat([call.index for call in each[calls]]) for each in truth.calls.values()], dim=1)


def recorded(model, *args, **kwargs):
    truth = Truth(model)
    with record(model) as recording, torch.no_grad():
        model(*args, **kwargs)
    truth.remove()
    return recording.trace, stacked(truth)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", ["named", "positional"])
def test_padding_is_empty_and_keeps_its_rows(model, side, how):
    ids = tokens(3, 8)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 3, 5)):
        mask[row, slice(0, pads) if side == "left" else slice(8 - pads, 8)] = 0
    ids[mask == 0] = PAD
    trace, truth = recorded(model, ids, mask) if how == "positional" else recorded(model, ids, attention_mask=mask)
    real = mask.flatten().bool()
    assert torch.equal(trace.indices[real].long(), truth[real])
    assert (trace.indices[~real] == -1).all()
    assert (trace.weights[~real] == 0).all()
    assert torch.equal(trace.token_mask, real)
    assert torch.equal(trace.token_ids, ids.flatten().int())
    assert trace.load.sum(dim=1).tolist() == [2 * int(real.sum())] * 4
    row = torch.arange(3).repeat_interleave(8)
    assert torch.equal(trace.document_ids, torch.where(real, row, -1).int())


def causal(mask, queries=None, unmasked=False):
    """``[B, 1, Q, S]`` bool of a padding mask, as transformers makes them."""
    length = mask.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, :]
    if unmasked:
        allowed |= ~allowed.any(dim=2, keepdim=True)
    return allowed[:, None] if queries is None else allowed[:, None, -queries:]


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("form", ["bool", "float", "unmasked"])
def test_masks_of_four_dimensions(model, side, form):
    mask = torch.ones(2, 6, dtype=torch.int64)
    if side != "none":
        mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    wide = causal(mask, unmasked=form == "unmasked")
    if form == "float":
        wide = torch.zeros(wide.shape).masked_fill(~wide, torch.finfo(torch.float32).min)
    if form == "bool" and side == "left":
        wide |= torch.eye(6, dtype=torch.bool) & ~wide.any(dim=3, keepdim=True) & (torch.zeros(6, 6) == 1)
    trace, truth = recorded(model, tokens(), attention_mask=wide)
    assert torch.equal(trace.token_mask, mask.flatten().bool())
    assert torch.equal(trace.indices[trace.token_mask].long(), truth[trace.token_mask])


def test_a_mask_by_kind_of_attention():
    model = tiny_model("gpt_oss")
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :3] = 0
    trace, _ = recorded(
        model, tokens(), attention_mask={"full_attention": causal(mask), "sliding_attention": causal(mask)}
    )
    assert torch.equal(trace.token_mask, mask.flatten().bool())


@pytest.mark.parametrize("static", [False, True])
def test_generate_tells_prefill_from_decoding(model, static):
    ids = tokens(3, 7)
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :1] = 0, 0
    ids[mask == 0] = PAD
    more = {"cache_implementation": "static"} if static else {}
    truth = Truth(model)
    with record(model) as recording:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None, **more)
    truth.remove()
    trace, rows = recording.trace, stacked(truth)
    real = torch.cat([mask.flatten().bool(), torch.ones(9, dtype=torch.bool)])
    assert recording.num_calls == 4
    assert torch.equal(trace.token_mask, real)
    assert torch.equal(trace.indices[real].long(), rows[real])
    assert trace.calls.tolist() == [0] * 21 + [1] * 3 + [2] * 3 + [3] * 3
    assert [PHASES[phase] for phase in trace.phases] == ["prefill"] * 21 + ["decode"] * 9
    # The last token that was made is not fed back.
    assert torch.equal(trace.token_ids[21:].view(3, 3).T, out[:, 7:10].int())
    assert trace.document_ids[21:].tolist() == [0, 1, 2] * 3
    decoded = recording.statistics.phase("decode")
    assert torch.equal(decoded.load, trace.select(phase="decode").load)
    assert decoded.tokens.tolist() == [9] * 4
    assert recording.statistics.phase("prefill").tokens.tolist() == [16] * 4
    assert recording.statistics.phase("forward").load.sum() == 0


def test_a_prompt_that_goes_on_is_prefill(model):
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with record(model) as recording, torch.no_grad():
        model(tokens(2, 4), past_key_values=cache)
        model(tokens(2, 3), past_key_values=cache)
        model(tokens(2, 1), past_key_values=cache)
        model(tokens(2, 5))
    trace = recording.trace
    assert [trace.select(phase=phase).num_tokens for phase in PHASES] == [10, 14, 2]
    assert trace.document_ids.tolist() == [0] * 4 + [1] * 4 + [0] * 3 + [1] * 3 + [0, 1] + [2] * 5 + [3] * 5


def test_a_cache_that_the_model_makes_for_itself():
    """MiniMax's ``generate()`` starts without one, and asks for it."""
    model = tiny_model("minimax")
    with record(model) as recording, torch.no_grad():
        model.generate(tokens(2, 5), max_new_tokens=3, do_sample=False, eos_token_id=None)
        model(tokens(2, 4))
    trace = recording.trace
    assert [trace.select(phase=phase).num_tokens for phase in PHASES] == [8, 10, 4]


def test_the_mask_of_a_static_cache_is_longer_than_the_step(model):
    cache = StaticCache(config=model.config, max_cache_len=16)
    mask = torch.zeros(2, 16, dtype=torch.int64)
    mask[:, :5] = 1
    mask[1, :2] = 0
    with record(model) as recording, torch.no_grad():
        model(tokens(2, 5), attention_mask=mask, past_key_values=cache)
        mask[:, 5] = 1
        model(tokens(2, 1), attention_mask=mask, past_key_values=cache)
    assert recording.trace.token_mask.tolist() == [True] * 5 + [False] * 2 + [True] * 3 + [True] * 2


@pytest.mark.parametrize("name", ["switch_transformers", "nllb_moe"])
def test_encoder_and_decoder_have_tokens_of_their_own(name):
    model = tiny_model(name)
    ids, outputs = tokens(2, 6), tokens(2, 6)
    mask, other = torch.ones_like(ids), torch.ones_like(ids)
    mask[0, 4:], other[1, 3:] = 0, 0
    with record(model) as recording, torch.no_grad():
        model(ids, attention_mask=mask, decoder_input_ids=outputs, decoder_attention_mask=other)
        model(ids, attention_mask=mask, decoder_input_ids=outputs)
    trace = recording.trace
    assert trace.num_tokens == 48
    assert torch.equal(trace.token_ids, torch.cat([ids.flatten(), outputs.flatten()] * 2).int())
    both = torch.cat([mask.flatten(), other.flatten()]).bool()
    encoder = [number for number, layer in enumerate(trace.layers) if "encoder" in layer]
    assert 0 < len(encoder) < trace.num_layers
    first = trace.indices[:24]
    assert (first[12:, encoder] == -1).all()
    assert (first[:12, len(encoder) :] == -1).all()
    assert (first[~both] == -1).all()
    # Without a mask of its own the decoder has no padding, whatever the encoder's.
    assert trace.document_ids[36:].tolist() == [6] * 6 + [7] * 6
    assert (trace.document_ids[24:36] == -1).sum() == 2


def test_encoder_and_decoder_generate():
    model = tiny_model("switch_transformers")
    with record(model) as recording:
        model.generate(tokens(2, 6), max_new_tokens=3, do_sample=False, eos_token_id=None)
    trace = recording.trace
    assert [PHASES[phase] for phase in trace.phases] == ["prefill"] * 14 + ["decode"] * 4


@pytest.mark.parametrize("packing", ["positions", "ends", "mask"])
def test_packed_sequences_are_documents(model, packing):
    ids = tokens(1, 9)
    inputs = {
        "positions": {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 0, 1]])},
        "ends": {"cu_seq_lens_q": torch.tensor([0, 4, 6, 7, 9], dtype=torch.int32)},
        "mask": {"attention_mask": torch.tensor([[1, 1, 1, 1, 2, 2, 3, 4, 4]])},
    }[packing]
    if packing == "ends":
        inputs |= {"cu_seq_lens_k": inputs["cu_seq_lens_q"], "max_length_q": 4, "max_length_k": 4}
    with record(model) as recording, torch.no_grad():
        model(ids, **inputs)
        model(ids)
    assert recording.trace.document_ids.tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3] + [4] * 9


def test_embeddings_in_place_of_ids(model):
    trace, truth = recorded(model, inputs_embeds=torch.randn(2, 5, 32))
    assert trace.token_ids is None
    assert torch.equal(trace.indices.long(), truth)
    assert trace.document_ids.tolist() == [0] * 5 + [1] * 5


def test_text_and_vision_experts_get_their_own_tokens():
    model = tiny_model("ernie4_5_vl_moe")
    inputs = tiny_inputs("ernie4_5_vl_moe")
    types = inputs["moe_mm_token_type_ids"].flatten().bool()
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, 9:] = 0
    truth = Truth(model)
    with record(model) as recording, torch.no_grad():
        model(**inputs, attention_mask=mask)
    truth.remove()
    trace, real = recording.trace, mask.flatten().bool()
    assert trace.num_tokens == 24
    for number, name in enumerate(trace.layers):
        mine = types if name.endswith("vision_moe") else ~types
        (call,) = truth.calls[name]
        placed = torch.full((24, 2), -1)
        placed[mine] = call.index
        placed[~real] = -1
        assert torch.equal(trace.indices[:, number].long(), placed)
    assert trace.load.sum() == 2 * 3 * int(real.sum())


def test_only_text_where_no_vision_is():
    model = tiny_model("ernie4_5_vl_moe")
    with record(model) as recording, torch.no_grad():
        model(input_ids=tokens())
    assert recording.load.sum(dim=1).gt(0).tolist() == [True, False] * 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_step_counts_once(reentrant):
    model = tiny_model("qwen3_moe").train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    ids = tokens()
    truth = Truth(model)
    with record(model, logits=True) as recording:
        for _ in range(2):
            model(ids, labels=ids, use_cache=False).loss.backward()
    truth.remove()
    # Each layer's experts have really run twice a step.
    assert {len(calls) for calls in truth.calls.values()} == {4}
    assert recording.num_calls == 2
    assert recording.trace.num_tokens == 24
    assert recording.load.sum(dim=1).tolist() == [48] * 4


def test_failed_forward_leaves_nothing_behind(model):
    ids = tokens()
    broken = model.model.layers[2].mlp

    def fail(*_):
        raise RuntimeError("out of luck")

    with record(model) as recording, torch.no_grad():
        model(ids)
        handle = broken.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            model(ids)
        handle.remove()
        handle = broken.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        handle.remove()
        model(ids)
    assert recording.num_calls == 2
    assert recording.num_failed == 2
    assert recording.trace.num_tokens == 24
    assert recording.trace.calls.tolist() == [0] * 12 + [1] * 12
    assert recording.load.sum(dim=1).tolist() == [48] * 4


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_an_exception_in_the_block_leaves_no_hooks_and_keeps_what_was_seen(model, tmp_path):
    before = hooks_of(model)
    with pytest.raises(ZeroDivisionError), record(model, path=tmp_path / "run.safetensors") as recording:
        model(tokens())
        raise ZeroDivisionError
    assert hooks_of(model) == before
    assert recording.trace.num_tokens == 12
    assert load(tmp_path / "run.safetensors").num_tokens == 12


def test_two_recordings_at_once_and_a_second_one_later(model):
    with record(model) as outer, torch.no_grad():
        model(tokens())
        with record(model, "statistics") as inner:
            model(tokens())
        model(tokens())
    assert outer.trace.num_tokens == 36
    assert inner.load.sum(dim=1).tolist() == [24] * 4
    with pytest.raises(RuntimeError, match="started already"):
        outer.start()


def test_readable_during_the_block(model):
    with record(model) as recording, torch.no_grad():
        assert recording.indices.shape == (0, 4, 0)
        assert recording.load.sum() == 0
        model(tokens())
        first = recording.indices.clone()
        model(tokens())
        assert torch.equal(recording.indices[:12], first)
        assert recording.trace.num_tokens == 24


def test_threads_keep_their_calls_apart(model):
    """As under DataParallel: several forwards at once."""
    batches = [tokens(1, 4 + number) for number in range(6)]
    barrier = threading.Barrier(6)

    def run(ids):
        barrier.wait()
        with torch.no_grad():
            model(ids)

    with record(model) as recording:
        threads = [threading.Thread(target=run, args=(ids,)) for ids in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace = recording.trace
    assert recording.num_calls == 6
    for call in range(6):
        part = trace.select(tokens=trace.calls == call)
        (ids,) = (ids for ids in batches if ids.shape[1] == part.num_tokens)
        assert torch.equal(part.token_ids, ids.flatten().int())
        with record(model) as alone, torch.no_grad():
            model(ids)
        assert torch.equal(part.indices, alone.indices)


def test_gradient_accumulation_and_what_is_not_recorded_after_it(model):
    model = tiny_model("mixtral").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    statistics = record(model, mode="statistics")
    statistics.start()
    for _ in range(2):
        for _ in range(3):
            ids = tokens()
            model(ids, labels=ids).loss.div(3).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert statistics.load.sum(dim=1).tolist() == [72] * 4
        assert statistics.statistics.num_calls == 3
        statistics.reset()
    statistics.stop()
    model(tokens())
    assert statistics.load.sum() == 0


def test_domains(model):
    with record(model) as recording, torch.no_grad():
        model(tokens())
        recording.domain = "code"
        model(tokens())
        recording.domain = ["prose", "code"]
        model(tokens())
        recording.domain = None
        model(tokens())
    trace = recording.trace
    assert trace.domains == ("code", "prose")
    assert trace.domain_ids.tolist() == [-1] * 12 + [0] * 12 + [1] * 6 + [0] * 6 + [-1] * 12
    with record(model) as recording, torch.no_grad():
        recording.domain = ["one", "two", "three"]
        with pytest.raises(ValueError, match="3 names, and the batch has 2 sequences"):
            model(tokens())
    assert recording.num_calls == 0
    with pytest.raises(TypeError, match="domain must be"):
        recording.domain = 3


def test_a_limit_of_memory_changes_nothing_but_where_rows_lie(model, tmp_path):
    batches = [tokens(2, length) for length in (3, 5, 4, 6)]
    traces = []
    for options in ({}, {"memory_limit": 0}, {"memory_limit": 400, "path": tmp_path / "run.safetensors"}):
        with record(model, logits=True, **options) as recording, torch.no_grad():
            for ids in batches:
                model(ids)
                assert recording.trace.indices.shape[0] == recording.trace.calls.shape[0]
        traces.append(recording.trace)
    assert traces[0].num_tokens == 36
    for trace in traces[1:]:
        for name in ("indices", "weights", "logits", "token_ids", "document_ids", "calls", "phases"):
            assert torch.equal(getattr(trace, name), getattr(traces[0], name)), name
    assert [part.name for part in tmp_path.iterdir() if not part.name.startswith(".moegate")] == ["run.safetensors"]
    del recording
    assert [part.name for part in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_slots_may_grow_while_recording(memory_limit):
    model = tiny_model("qwen3_moe")
    with record(model, memory_limit=memory_limit) as recording, torch.no_grad():
        for top_k in (2, 4, 1):
            for layer in model.model.layers:
                layer.mlp.gate.top_k = top_k
            model(tokens())
    trace = recording.trace
    assert trace.indices.shape == (36, 4, 4)
    assert (trace.indices >= 0).sum(dim=2).float().mean(dim=1).view(3, 12).mean(dim=1).tolist() == [2, 4, 1]
    assert recording.load.sum(dim=1).tolist() == [12 * 7] * 4
    assert (trace.weights[trace.indices < 0] == 0).all()


def test_weights_and_logits_as_they_were(model):
    truth, gates = Truth(model), []
    handle = model.model.layers[1].mlp.gate.register_forward_hook(lambda module, args, output: gates.append(output[0]))
    with record(model, logits=True, dtype=torch.float16) as recording, torch.no_grad():
        model(tokens())
    truth.remove()
    handle.remove()
    trace = recording.trace
    weights = torch.stack([call[0].weights for call in truth.calls.values()], dim=1)
    assert trace.weights.dtype == torch.float16
    assert torch.equal(trace.weights, weights.half())
    assert torch.equal(trace.logits[:, 1], gates[0].half())
    with record(model, weights=False) as recording, torch.no_grad():
        model(tokens())
    assert recording.weights is None


def test_metadata(model):
    with record(model) as recording, torch.no_grad():
        model(tokens())
    metadata = recording.trace.metadata
    assert metadata["model_type"] == "qwen3_moe"
    assert metadata["rules"][0] == moe_layers(model)[0].rule.to_dict()
    assert metadata["software"]["torch"] == torch.__version__.split("+")[0] or metadata["software"]["torch"]
    assert recording.layers == tuple(f"model.layers.{number}.mlp" for number in range(4))
    assert recording.indices.dtype == torch.int8


def test_a_layer_that_runs_by_itself(model):
    block = model.model.layers[0].mlp
    with record(model) as recording, torch.no_grad():
        block(torch.randn(1, 5, 32))
    assert recording.trace.indices.shape == (5, 4, 2)
    assert (recording.indices[:, 1:] == -1).all()


def test_wrong_arguments(model, tmp_path):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        record("model")
    with pytest.raises(ValueError, match="no MoE layers"):
        record(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="mode must be 'trace' or 'statistics', got 'all'"):
        record(model, mode="all")
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        record(model, dtype=torch.int8)
    with pytest.raises(ValueError, match="takes no path and no logits"):
        record(model, mode="statistics", path=tmp_path / "run.safetensors")
    with pytest.raises(FileNotFoundError, match="no folder"):
        record(model, path=tmp_path / "missing" / "run.safetensors")
    with pytest.raises(TypeError, match="path must be the name of a file or None, got 3"):
        record(model, path=3)
    with pytest.raises(TypeError, match="memory_limit must be an integer, got '1 GiB'"):
        record(model, memory_limit="1 GiB")
    other = tmp_path / "weights.safetensors"
    other.write_text("not a trace")
    with pytest.raises(ValueError, match="is no trace: it is not overwritten"):
        record(model, path=other)
    assert other.read_text() == "not a trace"
    with record(model, mode="statistics") as recording:
        pass
    with pytest.raises(ValueError, match="keeps no trace"):
        _ = recording.indices
    with pytest.raises(ValueError, match="keeps no domains"):
        recording.domain = "code"
    with pytest.raises(ValueError, match="phase must be one of"):
        recording.statistics.phase("training")
