"""Traces for the pages: small ones with everything in them, and one as large as a page must bear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegate.report import write_trace_report
from moegate.trace import Trace

DOMAINS = ("english", "python", "русский")
SWEEP = [
    {"top_k": 1, "trained": False, "loss": 1.7, "bits_per_byte": 2.45, "tokens_per_second": 39_000.0, "tokens": 90},
    {"top_k": 2, "trained": True, "loss": 1.5, "bits_per_byte": 2.16, "tokens_per_second": 37_000.0, "tokens": 90},
    {"top_k": 4, "trained": False, "loss": 1.6, "bits_per_byte": 2.31, "tokens_per_second": 30_000.0, "tokens": 90},
]


def skewed_indices(tokens: int, layers: int, experts: int, top_k: int, seed: int) -> np.ndarray:
    """`top_k` distinct experts for each token and layer, some far busier than others, in the order of a domain."""
    rng = np.random.default_rng(seed)
    steps = np.arange(top_k) * (top_k + 1) // 2  # distinct offsets, so that the experts of a token differ
    first_TL = (experts * rng.random((tokens, layers), dtype=np.float32) ** 3).astype(np.int16)
    place_TLK = (first_TL[..., None] + steps.astype(np.int16)) % experts
    order_LE = np.stack([rng.permutation(experts) for _ in range(layers)]).astype(np.int16)
    return np.stack([order_LE[layer][place_TLK[:, layer]] for layer in range(layers)], axis=1)


def make_trace(
    tokens: int = 240, layers: int = 4, experts: int = 8, top_k: int = 2, seed: int = 0, **fields: Any
) -> Trace:
    """A trace with everything that one can have: three domains, twelve documents, prefill and decoding, logits."""
    rng = np.random.default_rng(seed + 1)
    indices = skewed_indices(tokens, layers, experts, top_k, seed)
    domain_T = np.arange(tokens) * len(DOMAINS) // tokens
    indices = ((indices + (2 * domain_T)[:, None, None]) % experts).astype(np.int16)
    logits = rng.standard_normal((tokens, layers, experts)).astype(np.float32)
    gain = np.linspace(6.0, 4.0, top_k, dtype=np.float32)
    np.put_along_axis(logits, indices.astype(np.int64), gain + 0 * indices, axis=2)
    weights = np.sort(rng.dirichlet(np.ones(top_k), size=(tokens, layers)), axis=2)[..., ::-1]
    place_T = np.arange(tokens) % 20
    known: dict[str, Any] = {
        "weights": torch.from_numpy(weights.astype(np.float32).copy()),
        "logits": torch.from_numpy(logits),
        "token_ids": torch.from_numpy(rng.integers(97, 123, tokens)),
        "document_ids": torch.arange(tokens) // 20,
        "domain_ids": torch.from_numpy(domain_T),
        "domains": DOMAINS,
        "phases": torch.from_numpy(np.where(place_T < 12, 1, 2)),
        "metadata": {"model": "synthetic", "model_type": "mixtral", "software": {"torch": "2.13.0"}},
    }
    names = tuple(f"model.layers.{layer + 3}.mlp" for layer in range(layers))
    return Trace(torch.from_numpy(indices), names, (experts,) * layers, **known | fields)


def letters(token_ids: Any) -> list[str]:
    """A decoder of the tests' own."""
    return [chr(token) for token in token_ids]


def parted(trace: Trace, rows: range, layer: int) -> Trace:
    """The same trace, with another last expert for these rows in one layer."""
    indices = trace.indices.clone()
    for row in rows:
        used = set(indices[row, layer].tolist())
        indices[row, layer, -1] = next(expert for expert in range(trace.num_experts[layer]) if expert not in used)
    fields = {name: getattr(trace, name) for name in ("token_ids", "weights", "logits", "document_ids")}
    return Trace(indices, trace.layers, trace.num_experts, **fields, metadata={"model": "changed"})


@pytest.fixture
def new_trace() -> Callable[..., Trace]:
    return make_trace


@pytest.fixture
def part() -> Callable[..., Trace]:
    return parted


@pytest.fixture(scope="session")
def trace_gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it: a trace, another one that parts in layer 5, a sweep over K. Made once."""
    trace = make_trace()
    output = tmp_path_factory.mktemp("trace") / "trace.html"
    other = parted(trace, range(40, 70), layer=2)
    return write_trace_report(trace, output, other, decode=letters, top_k=SWEEP, names=("base", "tuned"))


@pytest.fixture(scope="session")
def big_trace() -> Trace:
    """58 layers of 256 experts, 100,000 tokens, K = 8."""
    tokens, layers, experts, top_k = 100_000, 58, 256, 8
    domain_T = torch.arange(tokens) % len(DOMAINS)
    indices = torch.from_numpy(skewed_indices(tokens, layers, experts, top_k, 0))
    return Trace(
        indices.add_((domain_T * 5).to(torch.int16)[:, None, None]).remainder_(experts),
        tuple(f"model.layers.{layer}.mlp" for layer in range(3, 3 + layers)),
        (experts,) * layers,
        weights=torch.full((1, 1, 1), 0.125, dtype=torch.float16).expand(tokens, layers, top_k),
        token_ids=torch.arange(tokens) % 26 + 97,
        document_ids=torch.arange(tokens) // 500,
        domain_ids=domain_T,
        domains=DOMAINS,
        phases=(torch.arange(tokens) % 500 > 300).int() + 1,
    )

    """The data inside a written page."""
    import json

    def read(page: Path) -> dict[str, Any]:
        html = page.read_text(encoding="utf-8")
        embedded = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
        return dict(json.loads(embedded))

    return read
