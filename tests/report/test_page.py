"""The file: self-contained, small, inert, written whole."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegate.report import page as page_module
from moegate.report import write_report
from moegate.report.page import MAX_BYTES, embed_json

Make = Callable[..., Path]
Read = Callable[[Path], dict[str, Any]]


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(gallery: Path) -> None:
    html = gallery.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe" not in policy[1]


def test_nothing_points_outside_the_file(gallery: Path) -> None:
    html = gallery.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<)]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=\"(?!data:)", html) == []
    assert "@import" not in html


def test_the_page_of_a_large_sweep_is_under_two_megabytes(gallery: Path) -> None:
    assert gallery.stat().st_size < 2_000_000


def test_a_deepseek_sized_model_fits_and_says_what_is_left_out(make_run: Make, tmp_path: Path, page_data: Read) -> None:
    run = make_run(layers=58, experts=256, top_k=8, log_steps=70, tokens=64)
    page = write_report([run], tmp_path / "report.html")
    assert page.stat().st_size < MAX_BYTES == 2_000_000
    data = page_data(page)
    assert data["runs"][0]["load"]["ratio"]["shape"][1:] == [58, 256]
    assert any("co-activation shows the" in sentence for sentence in data["trimmed"])


def test_detail_goes_before_the_page_grows_too_large(
    make_sweep: Make, tmp_path: Path, page_data: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep("sweep", [{"seed": seed, "log_steps": 120} for seed in range(4)])
    whole = write_report([sweep], tmp_path / "whole.html")
    monkeypatch.setattr(page_module, "MAX_BYTES", whole.stat().st_size * 7 // 10)
    small = write_report([sweep], tmp_path / "small.html")
    assert small.stat().st_size <= page_module.MAX_BYTES
    assert len(page_data(whole)["runs"]) == 4
    assert page_data(whole)["trimmed"] == []
    assert "the inside of 1 of 4 runs is shown" in page_data(small)["trimmed"][0]
    monkeypatch.setattr(page_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="these 4 runs would exceed 1,000 bytes; pass fewer"):
        write_report([sweep], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


HOSTILE = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "{{script}}", "\\", '"', "\ud800", "𝔘\x00"]


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_json_is_inert_and_reads_back(text: str) -> None:
    embedded = embed_json({"text": text})
    assert json.loads(embedded) == {"text": text}
    assert not set("<\u2028\u2029") & set(embedded)
    embedded.encode("utf-8")


def test_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embed_json(float("nan"))


def test_a_diverged_run_still_makes_a_page(make_run: Make, tmp_path: Path, page_data: Read) -> None:
    run = make_run(log_steps=8)
    for name in ("metrics.jsonl", "evaluation.json"):
        text = (run / name).read_text(encoding="utf-8")
        text = re.sub(r'"(loss|value)": [^,]+', r'"\1": NaN', text)
        text = re.sub(r'"max_violation": \[[^]]+\]', '"max_violation": [NaN, NaN, NaN]', text)
        (run / name).write_text(text, encoding="utf-8")
    data = page_data(write_report([run], tmp_path / "report.html"))
    assert data["runs"][0]["curves"]["loss"] == [None] * 8
    assert data["sweeps"][0]["rows"][0]["mean"] is None


def test_an_interrupted_write_leaves_the_older_page(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "report.html"
    write_report([make_run()], output)
    before = output.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report([make_run("other", seed=2)], output)
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_a_folder_is_no_output(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; pass the HTML file"):
        write_report([make_run()], tmp_path)


def test_the_header_says_what_was_run(gallery: Path, page_data: Read) -> None:
    digits, text = page_data(gallery)["sweeps"]
    assert digits["command"] == "moegate sweep --top-k 1,2,4"
    assert "PyTorch 2.13.0" in digits["software"]
    assert {
        "router": "topk",
        "words": "softmax over all experts → take the K best experts of each token → weights renormalised to sum 1",
    } in digits["rules"]
    assert text["finished"] is False
    assert "1 of 2 runs has not finished." in text["findings"]
