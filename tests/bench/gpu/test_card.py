"""The one file that speaks to CUDA, against stand-ins with the signatures of PyTorch's own functions."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch

from moegate.bench.gpu import card as module
from moegate.bench.gpu.card import CudaCard, Waits, first_line, why_no_card

NAMES = (
    *("CUDAGraph", "Event", "Stream", "device", "empty_cache", "get_device_properties", "graph", "is_available"),
    *(
        "max_memory_allocated",
        "memory_allocated",
        "reset_peak_memory_stats",
        "set_sync_debug_mode",
        "stream",
        "synchronize",
    ),
)


@pytest.fixture
def cuda(monkeypatch):
    """What the card uses of torch.cuda, with the parameters that it has there, but without a card."""
    fake = SimpleNamespace(**{name: create_autospec(getattr(torch.cuda, name)) for name in NAMES}, log=[])
    fake.get_device_properties.return_value = SimpleNamespace(
        name="some card", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, L2_cache_size=50 * 2**20
    )

    @contextmanager
    def entered(name):
        fake.log.append(f"enter {name}")
        yield
        fake.log.append(f"leave {name}")

    fake.device.side_effect = lambda device: entered("device")
    fake.stream.side_effect = lambda stream: entered("stream")
    fake.graph.side_effect = lambda graph, stream: entered("graph")
    monkeypatch.setattr(module.torch, "cuda", fake)
    return fake


def test_the_card_says_what_it_is(cuda):
    card = CudaCard()
    assert card.place.device == "cuda:0"
    assert card.place.accelerated
    assert card.place.cache_bytes == 200 * 2**20
    found = card.describe()
    assert (found["name"], found["capability"], found["multiprocessors"]) == ("some card", "9.0", 132)
    assert (found["memory_gib"], found["l2_mib"]) == (80.0, 50.0)


def test_everything_happens_on_one_stream(cuda):
    card = CudaCard()
    with card.session():
        graph = card.capture([lambda: 1, lambda: 2])
    assert cuda.log == ["enter device", "enter stream", "enter graph", "leave graph", "leave stream", "leave device"]
    assert cuda.graph.call_args.kwargs["stream"] is cuda.Stream.return_value
    assert graph.result == 2
    assert graph.replay is cuda.CUDAGraph.return_value.replay


def test_times_are_those_of_events_in_microseconds(cuda):
    cuda.Event.return_value.elapsed_time.return_value = 0.25
    ran = []
    assert CudaCard().microseconds([lambda: ran.append(1), lambda: ran.append(2)]) == [250.0, 250.0]
    assert ran == [1, 2]
    assert cuda.Event.call_count == 4
    assert cuda.Event.call_args.kwargs == {"enable_timing": True}
    assert cuda.Event.return_value.record.call_count == 4
    cuda.synchronize.assert_called_once()


def test_a_call_that_waits_is_found_and_the_mode_is_put_back(cuda):
    def waiting():
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(Waits, match="synchronizing"):
        CudaCard().check_waits(waiting)
    assert [call.args for call in cuda.set_sync_debug_mode.call_args_list] == [("error",), ("default",)]


def test_another_error_of_such_a_call_is_itself(cuda):
    def failing():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        CudaCard().check_waits(failing)
    CudaCard().check_waits(lambda: None)


def test_memory(cuda):
    cuda.memory_allocated.return_value = 100
    cuda.max_memory_allocated.return_value = 130
    card = CudaCard()
    assert card.peak_bytes(lambda: None) == 30
    card.release()
    cuda.empty_cache.assert_called_once_with()
    card.wait()


def test_why_there_is_no_card(cuda, monkeypatch):
    cuda.is_available.return_value = True
    assert why_no_card() is None
    cuda.is_available.return_value = False
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built without CUDA" in why_no_card()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no CUDA device" in why_no_card()


def test_an_error_without_a_text_has_its_name():
    assert first_line(KeyError()) == "KeyError"
