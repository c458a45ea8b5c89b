"""The file about a trace: what is in it, small, inert, written whole."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegate.report import page as page_module
from moegate.report import write_trace_report
from moegate.report.traces import MAX_BYTES
from moegate.report.traces import page as trace_page
from moegate.trace import Loads, Trace, diff

New = Callable[..., Trace]
Read = Callable[[Path], dict[str, Any]]


def test_everything_of_a_small_trace_is_there(trace_gallery: Path, page_data: Read, new_trace: New) -> None:
    data, trace = page_data(trace_gallery), new_trace()
    assert [line["max_violation"] for line in data["run"]["table"]] == pytest.approx(
        [float(load.max() / load.double().mean() - 1) for load in trace.load], rel=1e-4
    )
    assert data["run"]["layers"] == ["3", "4", "5", "6"]
    assert data["run"]["domains"]["names"] == ["english", "python", "русский"]
    assert set(data["run"]["over"]) == {"recording", "position", "phase"}
    assert data["tiles"] == {
        "layers": 4, "experts": [8], "assignments": 1920.0, "dead": 0, "tokens": 240, "top_k": 2, "documents": 12,
    }  # fmt: skip
    assert data["trimmed"] == ["the token view shows the beginning of some documents"]


def test_the_token_view_shows_all_domains_in_turn(trace_gallery: Path, page_data: Read, new_trace: New) -> None:
    texts = page_data(trace_gallery)["texts"]
    assert [text["domain"] for text in texts] == ["english"] * 3 + ["python"] * 3 + ["русский"] * 2
    ids = new_trace().token_ids
    assert ids is not None
    assert texts[3]["tokens"] == [chr(token) for token in ids[80:100]], "the first document of the second domain"


def test_the_comparison_is_that_of_diff(trace_gallery: Path, page_data: Read, new_trace: New, part: New) -> None:
    trace = new_trace()
    expected = diff(trace, part(trace, range(40, 70), layer=2))
    found = page_data(trace_gallery)["comparison"]
    assert found["agreement"] == pytest.approx([layer.agreement for layer in expected.layers], rel=1e-5)
    assert found["first"] == pytest.approx([0, 0, 30 / 240, 0])
    assert (found["parted"], len(found["parting"])) == (30, 30)
    token = found["parting"][0]
    assert 40 <= token["row"] < 70
    assert (token["layer"], token["layers"]) == (2, 1)
    chosen = trace.indices[token["row"], 2].tolist()
    assert token["here"] == [chosen[-1]]
    assert trace.logits is not None
    logits = trace.logits[token["row"], 2]
    others = [float(logits[expert]) for expert in range(8) if expert not in chosen]
    assert token["margin"] == pytest.approx(float(logits[chosen].min()) - max(others), rel=1e-4)


def test_the_findings_say_what_the_numbers_say(trace_gallery: Path, page_data: Read, new_trace: New) -> None:
    findings = page_data(trace_gallery)["findings"]
    loads = new_trace().load.double()
    violation = (loads.max(dim=1).values / loads.mean(dim=1) - 1).numpy()
    worst = int(violation.argmax())
    assert f"most uneven in layer {worst + 3}: expert {int(loads[worst].argmax())} gets" in findings[0]
    assert f"(MaxVio {violation[worst]:.2f}; the median of the layers is {np.median(violation):.2f})" in findings[0]
    assert "Every one of the 32 experts was used." in findings
    assert any("“tuned”: 3.12% of the decisions" in sentence for sentence in findings)


@pytest.mark.parametrize("whole", [True, False])
def test_counts_alone_make_a_page(tmp_path: Path, page_data: Read, whole: bool) -> None:
    load = torch.tensor([[3, 1, 0], [2, 2, 2]])
    loads = Loads(load if whole else load / 3, ("0", "1"), (3, 3), {"source": "counts.json"})
    data = page_data(write_trace_report(loads, tmp_path / "page.html", loads))
    assert set(data["run"]) >= {"table", "final_load"}
    assert not {"domains", "pairs", "over"} & set(data["run"])
    assert data["run"]["views"] == []
    assert "no tokens in a trace of counts" in data["comparison"]["apart"]
    assert data["facts"] == [["Source", "counts.json"]]
    assert any("1 of 6 experts got no token, all in layer 0 (1 of 3)" in sentence for sentence in data["findings"])


def test_traces_of_other_tokens_are_compared_by_their_loads(new_trace: New, tmp_path: Path, page_data: Read) -> None:
    data = page_data(write_trace_report(new_trace(), tmp_path / "page.html", new_trace(tokens=100, seed=5)))
    assert data["comparison"]["apart"].startswith("Only the loads are compared. The first trace has 240 tokens")
    assert data["comparison"]["apart"] in data["findings"]
    assert "agreement" not in data["comparison"]
    assert "differs" not in data["run"]["views"][0]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [({"token_ids": None}, "[0]"), ({"token_ids": torch.full((240,), -1)}, "?"), ({}, "#")],
)
def test_tokens_without_a_text_are_shown_by_what_is_known(
    new_trace: New, tmp_path: Path, page_data: Read, fields: dict[str, Any], shown: str
) -> None:
    data = page_data(write_trace_report(new_trace(**fields), tmp_path / "page.html"))
    assert data["texts"][0]["tokens"][0].startswith(shown)


def test_a_decoder_must_give_a_text_for_each_id(new_trace: New, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decode gave 1 texts for 20 token ids"):
        write_trace_report(new_trace(), tmp_path / "page.html", decode=lambda _: ["a"])
    assert list(tmp_path.iterdir()) == []


def bare(trace: Trace) -> Trace:
    return Trace(trace.indices, trace.layers, trace.num_experts)


@pytest.mark.parametrize(
    "change",
    [
        bare,
        lambda trace: replace(bare(trace), indices=trace.indices[:0]),
        lambda trace: replace(bare(trace), indices=torch.full_like(trace.indices, -1)),
        lambda trace: replace(bare(trace), indices=trace.indices[:1, :, :1]),
        lambda trace: Trace(trace.indices[:, :1], ("mlp",), (8,)),
        lambda trace: Trace(trace.indices, trace.layers, (8, 16, 300, 8)),
        lambda trace: Trace(trace.indices[:, :0], (), ()),
        lambda trace: Trace(torch.zeros(5, 2, 1, dtype=torch.int8), ("a", "b"), (1, 1)),
        lambda trace: replace(trace, weights=torch.full_like(trace.weights, float("nan"))),
        lambda trace: replace(trace, logits=torch.full_like(trace.logits, float("nan"))),
        lambda trace: replace(trace, domain_ids=torch.full((240,), -1)),
        lambda trace: replace(trace, document_ids=torch.arange(240)),
        lambda trace: replace(trace, metadata={"rules": "no list", "software": 3, "notes": "one", "model": ["x"]}),
        lambda trace: replace(bare(trace), domain_ids=trace.domain_ids, domains=trace.domains),
    ],
)
def test_traces_of_every_shape_make_a_page(
    new_trace: New, tmp_path: Path, page_data: Read, change: Callable[[Trace], Trace]
) -> None:
    trace = change(new_trace())
    for other in (None, trace):
        data = page_data(write_trace_report(trace, tmp_path / "page.html", other))
        assert data["run"]["num_layers"] == trace.num_layers
        assert data["findings"]


def test_narrower_layers_keep_their_own_fair_share(new_trace: New, tmp_path: Path, page_data: Read) -> None:
    trace = new_trace()
    data = page_data(write_trace_report(replace(bare(trace), num_experts=(8, 16, 8, 8)), tmp_path / "page.html"))
    assert data["run"]["layer_experts"] == [8, 16, 8, 8]
    assert data["tiles"]["experts"] == [8, 16]
    assert data["run"]["table"][1]["dead_experts"] == 8


def test_many_domains_share_a_line(new_trace: New, tmp_path: Path, page_data: Read) -> None:
    trace = new_trace(domain_ids=torch.arange(240) % 120, domains=tuple(f"language {n}" for n in range(120)))
    data = page_data(write_trace_report(trace, tmp_path / "page.html"))
    assert data["run"]["domains"]["names"][-1] == "73 others"
    assert data["run"]["domains"]["ratio"]["shape"] == [4, 48, 8]
    assert any("47 largest of 120 domains" in sentence for sentence in data["trimmed"])


def test_the_page_points_nowhere_and_allows_nothing_else(trace_gallery: Path) -> None:
    html = trace_gallery.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<)]+", html)) == {"http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]


def test_detail_goes_before_the_page_grows_too_large(
    new_trace: New, tmp_path: Path, page_data: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = new_trace(tokens=4000, layers=6, experts=160, top_k=4)
    whole = write_trace_report(trace, tmp_path / "whole.html")
    monkeypatch.setattr(trace_page, "MAX_BYTES", whole.stat().st_size // 2)
    small = write_trace_report(trace, tmp_path / "small.html")
    assert small.stat().st_size <= trace_page.MAX_BYTES
    assert page_data(whole)["run"]["table"] == page_data(small)["run"]["table"], "figures are of all tokens"
    strongest = page_data(whole)["run"]["pairs"]["strongest"]
    assert len(strongest) == 6
    assert len(strongest[0]) == 40
    monkeypatch.setattr(trace_page, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="6 layers of up to 160 experts would exceed 1,000 bytes"):
        write_trace_report(trace, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_an_interrupted_write_leaves_the_older_page(
    new_trace: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "page.html"
    write_trace_report(new_trace(), output)
    before = output.read_bytes()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_trace_report(new_trace(seed=3), output)
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_wrong_arguments_are_sentences(new_trace: New, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; pass the HTML file"):
        write_trace_report(new_trace(), tmp_path)
    with pytest.raises(TypeError, match=r"trace is Tensor; pass a moegate\.trace\.Trace"):
        write_trace_report(new_trace().indices, tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="other is str"):
        write_trace_report(new_trace(), tmp_path / "page.html", "other.safetensors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 layers of 8 experts and 3 layers of 8 experts"):
        write_trace_report(new_trace(), tmp_path / "page.html", new_trace(layers=3))


def test_every_script_is_listed_once_and_exists() -> None:
    assets = Path(page_module.__file__).parent / "assets"
    listed = {*page_module.SCRIPTS, *trace_page.SCRIPTS}
    assert {path.name for path in assets.glob("*.js")} == listed
    assert len(set(trace_page.SCRIPTS)) == len(trace_page.SCRIPTS)


def test_the_limit_is_that_of_an_e_mail() -> None:
    assert MAX_BYTES == 5_000_000
