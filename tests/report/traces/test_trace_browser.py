"""The page about a trace in a real browser, from disk and without a network; `chromium_page` fails on any error."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

# From the folder above; conftest.py puts it on the path.
from pages import CONTRAST, NAMELESS, OUTSIDE, card, hover, pixel, tooltip

from moegate.report import write_trace_report
from moegate.report.traces import MAX_BYTES
from moegate.trace import Loads, Trace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

New = Callable[..., Trace]
PHONE = {"width": 390, "height": 844}
LOAD = "Load of every layer and expert"


@pytest.fixture
def page(chromium_page: "Page", trace_gallery: Path) -> "Page":
    chromium_page.set_default_timeout(10_000)
    chromium_page.emulate_media(color_scheme="light", reduced_motion="reduce")
    chromium_page.goto(trace_gallery.as_uri())
    return chromium_page


def choose_layer(page: "Page", name: str) -> None:
    page.get_by_label("Layer", exact=True).select_option(label=name)


def canvas_of(page: "Page", title: str) -> "Locator":
    return card(page, title).locator("canvas.heatmap")


def rows_of(table: "Locator") -> list[list[str]]:
    # A table that has just been unfolded is filled a moment later.
    table.locator("tbody tr").first.wait_for(state="attached")
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]


def test_every_part_is_there(page: "Page") -> None:
    assert page.title() == "Routing trace · moegate report"
    links = page.locator("#sections a").all_inner_texts()
    assert links == ["Overview", "Comparison", "Experts per token", "Layer by layer"]
    for heading in (
        "What this shows",
        "Layers",
        "Where they agree",
        "Tokens that part",
        "Difference of the loads",
        "Quality and speed by K",
        LOAD,
        "Over the depth of the model",
        "Load over the recording",
        "Domains and experts",
        "Experts that work together",
        "A text, token by token",
    ):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()


def test_the_table_of_layers_has_the_numbers_sorts_and_opens_a_layer(page: "Page", new_trace: New) -> None:
    loads = new_trace().load.double()
    violation = (loads.max(dim=1).values / loads.mean(dim=1) - 1).tolist()
    layers = card(page, "Layers")
    rows = rows_of(layers)
    assert [row[0] for row in rows] == ["3", "4", "5", "6"]
    assert [row[4] for row in rows] == [f"{value:.2f}" for value in violation]
    assert [int(row[8].split(" ")[0]) for row in rows] == loads.argmax(dim=1).tolist(), "the hottest expert"
    layers.get_by_role("button", name="MaxVio").click()
    layers.get_by_role("button", name="MaxVio").click()
    worst_first = sorted(range(4), key=lambda layer: -violation[layer])
    assert [row[0] for row in rows_of(layers)] == [str(layer + 3) for layer in worst_first]
    layers.get_by_role("button", name="Look inside layer 5").click()
    assert page.get_by_label("Layer", exact=True).input_value() == "5"


def test_the_load_is_read_by_keyboard_in_both_orders(page: "Page", new_trace: New) -> None:
    loads = new_trace().load.double()
    ratio = loads / loads.mean(dim=1, keepdim=True)
    canvas = canvas_of(page, LOAD)
    page.keyboard.press("Tab")
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert tooltip(page).inner_text().startswith(f"Layer 4, expert 1\nLoad {ratio[1, 1]:.2f}")
    page.keyboard.press("Enter")
    assert page.get_by_label("Layer", exact=True).input_value() == "4"
    card(page, LOAD).get_by_role("button", name="By load").click()
    canvas_of(page, LOAD).focus()
    busiest = int(ratio[0].argmax())
    page.keyboard.press("Home")
    assert tooltip(page).inner_text().startswith(f"Layer 3, expert {busiest}\nLoad {ratio[0, busiest]:.2f}")
    card(page, LOAD).get_by_text("As a table").click()
    cells = rows_of(card(page, LOAD))[2]
    assert cells[1:] == [f"{ratio[2, e]:.2f}\u2009× ({e})" for e in ratio[2].argsort(descending=True, stable=True)]


def test_the_mouse_reads_a_cell_and_a_click_chooses_the_layer(page: "Page") -> None:
    canvas = canvas_of(page, LOAD)
    hover(page, canvas, x=30, y=22 + 26 * 2 + 5)
    assert tooltip(page).inner_text().startswith("Layer 5, expert 0\n")
    page.mouse.down()
    page.mouse.up()
    assert page.get_by_label("Layer", exact=True).input_value() == "5"


def test_the_chosen_layer_is_that_of_every_chart(page: "Page") -> None:
    choose_layer(page, "6")
    for title in ("Load over the recording", "Domains and experts", "Experts that work together"):
        assert "layer 6" in (canvas_of(page, title).get_attribute("aria-label") or "")
    surface = card(page, "Over the depth of the model").locator(".surface").first
    page.keyboard.press("Tab")
    surface.focus()
    assert tooltip(page).inner_text().startswith("Layer 6\nbase: ")


def test_curves_over_the_depth_show_both_traces(page: "Page") -> None:
    depth = card(page, "Over the depth of the model")
    assert depth.locator("figcaption").all_inner_texts() == [
        "MaxVio", "Effective experts", "Entropy of the load", "Domain and expert", "Margin of the last expert",
    ]  # fmt: skip
    assert depth.locator("figure").first.locator(".line.series-1").count() == 1
    assert depth.locator("figure").nth(3).locator(".line.series-1").count() == 0, "the other has no domains"
    depth.get_by_text("As a table").click()
    assert len(rows_of(depth)) == 4


def test_the_load_goes_over_phases_positions_and_the_recording(page: "Page", new_trace: New) -> None:
    trace = new_trace()
    assert trace.phases is not None
    over = card(page, "Load over the recording")
    over.get_by_text("As a table").click()
    prefill = trace.indices[trace.phases == 1, 0].flatten().bincount(minlength=8).double()
    assert [row[1] for row in rows_of(over)] == [f"{value:.2f}\u2009×" for value in _stored(prefill / prefill.mean())]
    for name, title in (("Position in the document", "Positions 16 to 19"), ("Recording", "Tokens 2")):
        over.get_by_role("button", name=name).click()
        page.keyboard.press("Tab")
        canvas_of(page, "Load over the recording").focus()
        page.keyboard.press("End")
        assert tooltip(page).inner_text().splitlines()[1].startswith(title)


def _stored(ratio: torch.Tensor) -> list[float]:
    """Ratios as one byte keeps them: logarithms in 254 steps from 2^-5 to 2^8."""
    code = 1 + torch.round((ratio.log2().clamp(-5, 8) + 5) / 13 * 254)
    return [float(2 ** (-5 + (value - 1) / 254 * 13)) for value in code]


def test_the_comparison_says_where_the_traces_part(page: "Page") -> None:
    agree = card(page, "Where they agree")
    agree.get_by_text("As a table").click()
    first = [row[3] for row in rows_of(agree)]
    assert first == ["0.00\u2009%", "0.00\u2009%", "12.50\u2009%", "0.00\u2009%"]
    rows = rows_of(card(page, "Tokens that part"))
    assert len(rows) == 30
    assert {row[4] for row in rows} == {"5"}, "the layer that differs"
    canvas = canvas_of(page, "Difference of the loads")
    page.keyboard.press("Tab")
    canvas.focus()
    assert "base: " in tooltip(page).inner_text()
    assert "tuned: " in tooltip(page).inner_text()


def test_tokens_that_part_are_underlined_in_the_text(page: "Page") -> None:
    text = card(page, "A text, token by token")
    choose_layer(page, "5")
    text.get_by_label("Text", exact=True).select_option(label="english 3")  # rows 40 to 59
    assert text.locator(".token.parts").count() == 20
    hover(page, text.locator(".token").first)
    assert "1 expert not shared with the other trace" in tooltip(page).inner_text()
    choose_layer(page, "4")
    assert text.locator(".token.parts").count() == 0


def test_the_text_has_the_experts_of_the_chosen_layer(page: "Page", new_trace: New) -> None:
    trace = new_trace()
    choose_layer(page, "4")
    tokens = card(page, "A text, token by token").locator(".token")
    labels = tokens.evaluate_all("tokens => tokens.map(token => token.getAttribute('aria-label'))")
    assert len(labels) == 20
    for row, label in enumerate(labels):
        first, second = trace.indices[row, 1].tolist()
        assert f"Expert {first}, weight" in label
        assert label.index(f"Expert {first},") < label.index(f"Expert {second},")


def test_the_sweep_over_k_marks_the_trained_one(page: "Page") -> None:
    sweep = card(page, "Quality and speed by K")
    assert [row[0] for row in rows_of(sweep)] == ["1", "2 (trained)", "4"]
    assert [row[-1] for row in rows_of(sweep)] == ["1.05\u2009×", "1.00\u2009×", "0.81\u2009×"]
    surface = sweep.locator(".surface").first
    page.keyboard.press("Tab")
    surface.focus()
    assert tooltip(page).inner_text().splitlines() == [
        "K = 2, as trained", "2.1600 bits/byte", "Loss 1.5000", "37.0\u2009k tokens/s",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page: "Page", scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(50)
    found = page.evaluate(CONTRAST)
    assert len(found) > 30
    assert [(name, ratio) for name, ratio in found if ratio < 4.5] == []


def test_the_theme_paints_canvases_again(page: "Page") -> None:
    canvas = canvas_of(page, LOAD)
    light = pixel(canvas, 30, 40)
    page.get_by_role("button", name="Switch to dark colours").click()
    assert pixel(canvas, 30, 40) != light
    page.get_by_role("button", name="Switch to light colours").click()
    assert pixel(canvas, 30, 40) == light


def test_a_phone_needs_no_sideways_scrolling(page: "Page") -> None:
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(200)
    for summary in page.locator("details.numbers summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate(OUTSIDE) == []


def test_everything_that_takes_the_focus_has_a_name_and_ids_are_unique(page: "Page") -> None:
    assert page.evaluate(NAMELESS) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))


def test_it_prints_without_its_controls(page: "Page") -> None:
    page.emulate_media(media="print")
    assert page.locator(".toolbar").first.is_hidden()
    assert page.locator(".segmented").first.is_hidden()
    assert canvas_of(page, LOAD).is_visible()
    assert page.pdf()[:4] == b"%PDF"


ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{script}}\u2028\'"&amp;'


def test_hostile_names_are_shown_and_do_nothing(chromium_page: "Page", new_trace: New, tmp_path: Path) -> None:
    layers = tuple(f"{ATTACK}{letter}" for letter in "abcd")
    metadata = {"model": ATTACK, "source": ATTACK, "notes": [ATTACK], "software": ATTACK}
    trace = new_trace(domains=(ATTACK, "b", "c"), metadata=metadata)
    fields = {name: getattr(trace, name) for name in ("domain_ids", "domains", "token_ids", "metadata")}
    trace = Trace(trace.indices, layers, trace.num_experts, **fields)
    page = write_trace_report(
        trace, tmp_path / "page.html", trace, decode=lambda ids: [ATTACK] * len(ids), title=ATTACK, names=(ATTACK, "b")
    )
    chromium_page.goto(page.as_uri())
    for summary in chromium_page.locator("details.numbers summary").all():
        summary.click()
    assert chromium_page.evaluate("window.hacked") is None
    assert chromium_page.locator("img").count() == 0
    assert chromium_page.locator("script").count() == 2
    assert "<img src=x" in chromium_page.title()


@pytest.mark.parametrize("kind", ["counts", "one layer", "no tokens", "top-1", "ids only"])
def test_pages_of_little_open(chromium_page: "Page", new_trace: New, tmp_path: Path, kind: str) -> None:
    trace = new_trace()
    source: Trace | Loads = {
        "counts": Loads(trace.load, trace.layers, trace.num_experts),
        "one layer": Trace(trace.indices[:, :1], ("mlp",), (8,)),
        "no tokens": Trace(trace.indices[:0], trace.layers, trace.num_experts),
        "top-1": Trace(trace.indices[..., :1], trace.layers, trace.num_experts),
        "ids only": Trace(trace.indices, trace.layers, trace.num_experts, token_ids=trace.token_ids),
    }[kind]
    chromium_page.goto(write_trace_report(source, tmp_path / "page.html").as_uri())
    assert chromium_page.get_by_role("heading", name="What this shows").is_visible()
    shown = kind != "no tokens"
    assert canvas_of(chromium_page, LOAD).count() == shown
    assert card(chromium_page, "A text, token by token").count() == (shown and kind != "counts")
    if kind == "top-1":
        assert "no pairs" in card(chromium_page, "Experts that work together").inner_text()


WHEN_READY = "performance.getEntriesByName('moegate-ready')[0].startTime"
MOVES = """async () => {
  const canvas = document.querySelector("canvas.heatmap"); const box = canvas.getBoundingClientRect();
  const start = performance.now();
  for (let step = 0; step < 60; step += 1) {
    const [clientX, clientY] = [box.left + 60 + 10 * step, box.top + 40 + 5 * step];
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
  }
  return (performance.now() - start) / 60;
}"""
SWITCH = """() => { const start = performance.now(); const layer = document.getElementById("layer");
  layer.selectedIndex = 40; layer.dispatchEvent(new Event("change"));
  document.querySelector("canvas.heatmap").getContext("2d").getImageData(0, 0, 1, 1);
  return performance.now() - start; }"""


def test_a_deepseek_sized_trace_is_written_opened_and_read_quickly(
    browser: "Browser", big_trace: Trace, tmp_path: Path
) -> None:
    start = time.process_time()
    output = write_trace_report(big_trace, tmp_path / "big.html", decode=lambda ids: [chr(token) for token in ids])
    assert time.process_time() - start < 20
    assert output.stat().st_size <= MAX_BYTES
    ready = []
    # The best of a few openings: other work on the machine can only make one slower.
    while len(ready) < 4 and min(ready, default=9e9) > 2000:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
        page = context.new_page()
        errors: list[str] = []
        page.on("console", lambda message, seen=errors: seen.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error, seen=errors: seen.append(str(error)))
        page.goto(output.as_uri())
        ready.append(page.evaluate(WHEN_READY))
        assert canvas_of(page, LOAD).is_visible()
        switch, move = page.evaluate(SWITCH), page.evaluate(MOVES)
        label = canvas_of(page, "Domains and experts").get_attribute("aria-label") or ""
        tiles, table = page.locator(".tiles").inner_text(), rows_of(card(page, "Layers"))
        context.close()
        assert not errors
        assert "layer 43" in label
    assert "46.4\u2009M" in tiles, "100,000 tokens x 58 layers x 8 experts"
    load = big_trace.indices[:, 57].long().flatten().bincount(minlength=256).double()
    assert table[57][4] == f"{float(load.max() / load.mean() - 1):.2f}"
    assert min(ready) <= 2000
    assert switch < 1000, "another layer"
    assert move < 50, "the cursor follows the mouse"
