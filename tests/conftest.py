"""What every test gets: its own seed, one torch thread, poisoned memory, and a browser where there is one."""

import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import quick_interpreter
import torch
from triton_sanitizer import Sanitizer
from triton_support import ON_TRITON

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root there is no sandbox; without the other flags Chromium looks for hosts outside at every start.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def in_ci() -> bool:
    """CI sets MOEGATE_CI: there, a test that cannot run is a failure."""
    return bool(os.environ.get("MOEGATE_CI"))


def seed_of(node_id: str) -> int:
    """The same seed for the same test, in every process and whatever ran before."""
    return int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:4], "little")


@pytest.fixture(autouse=True)
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed every generator from the test's name, on one torch thread; put back what a test may change."""
    seed = seed_of(request.node.nodeid)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN, or with the largest integer, in place."""
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make uninitialised memory loud: what is read before it is written is NaN, not a lucky zero."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))


@pytest.fixture(autouse=True)
def sanitized_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the operators run on Triton's interpreter, look at every address that a kernel touches."""
    with pytest.MonkeyPatch.context() as patch:  # one of its own, which ``compiler`` doesn't undo
        if ON_TRITON:
            quick_interpreter.install(patch)
            Sanitizer(may_race=request.node.get_closest_marker("may_race") is not None).install(patch)
        yield


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh compiler, without the poisoned memory of other tests: it can't trace through that."""
    monkeypatch.undo()
    # It looks up each function of torch by identity, and may have listed the poisoned ones in an earlier test.
    torch._dynamo.trace_rules.clear_lru_cache()
    torch.compiler.reset()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is; skips without one, and fails in CI."""
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    reason = f"no Chromium on this machine (looked for {', '.join(CHROMIUM_NAMES)}): page tests need one"
    if in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser(chromium_path: str) -> Iterator["Browser"]:
    """A headless Chromium for the whole session."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_path, headless=True, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def chromium_page(browser: "Browser") -> Iterator["Page"]:
    """A fresh page, cut off from the network; the test fails if the page logs an error.

    Open a file with `page.goto(path.as_uri())`.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda failed: errors.append(f"request failed: {failed.url[:200]}"))
    yield page
    context.close()
    assert not errors, f"the page logged errors: {errors}"


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout that the tests belong to."""
    return Path(__file__).parents[1]
