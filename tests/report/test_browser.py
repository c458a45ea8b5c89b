"""The page in a real browser, opened from disk and cut off from the network; `chromium_page` fails on any error."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# From this folder; conftest.py puts it on the path.
from pages import CONTRAST, NAMELESS, OUTSIDE, card, hover, pixel, tooltip

from moegate.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Make = Callable[..., Path]
PHONE = {"width": 360, "height": 740}
LANGUAGE_RUN = "2 text runs: topk, K = 2, aux balance, seed 0"
UNFINISHED_RUN = "2 text runs: topk, K = 2, aux balance, seed 1 (not finished)"


@pytest.fixture
def page(chromium_page: "Page", gallery: Path) -> "Page":
    chromium_page.set_default_timeout(10_000)
    chromium_page.emulate_media(color_scheme="light", reduced_motion="reduce")
    chromium_page.goto(gallery.as_uri())
    return chromium_page


def choose_run(page: "Page", label: str) -> None:
    page.get_by_label("Run", exact=True).select_option(label=label)


def column(page: "Page", number: int) -> list[str]:
    return page.locator("table.summary").first.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_it_opens_without_asking_the_network(page: "Page") -> None:
    assert page.title() == "digits and 2 text runs · moegate report"
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
    for heading in (
        "What this shows",
        "Quality and speed",
        "All configurations",
        "Summary table",
        "Load over training",
    ):
        assert page.get_by_role("heading", name=heading).first.is_visible()


def test_the_findings_of_the_data_are_on_the_page(page: "Page") -> None:
    shown = page.locator(".shows").first.inner_text()
    data = json.loads(page.locator("#data").text_content() or "")
    for sentence in data["sweeps"][0]["findings"]:
        assert sentence in shown


def test_the_table_sorts_both_ways_and_says_so(page: "Page") -> None:
    header = page.locator("table.summary").first.get_by_role("columnheader").filter(has_text="Accuracy")
    button = header.get_by_role("button")

    def means() -> list[float]:
        return [float(text.split("%")[0]) for text in column(page, 4)]

    unsorted = means()
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert means() == sorted(unsorted) != unsorted
    button.focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert means() == sorted(unsorted, reverse=True)


def test_filters_act_on_charts_and_table(page: "Page") -> None:
    chart = page.locator(".charts .plot").first
    assert chart.locator(".mark").count() == 12
    page.get_by_role("group", name="Show Router").first.get_by_role("button", name="switch").click()
    assert chart.locator(".mark").count() == 9
    assert not any("switch" in name for name in column(page, 1))
    page.get_by_role("group", name="Show K").get_by_role("button", name="4").click()
    assert chart.locator(".mark").count() == 6
    assert set(column(page, 2)) == {"1", "2"}
    for name in ("1", "2"):
        page.get_by_role("group", name="Show K").get_by_role("button", name=name, exact=True).click()
    assert page.get_by_text("No configuration is left").is_visible()


def test_a_router_that_looks_ahead_is_flagged_and_stays_out_of_the_charts_until_asked(page: "Page") -> None:
    rows = page.locator("table.summary").first.locator("tr", has_text="expert_choice")
    assert rows.count() == 3
    assert all("not comparable" in text for text in rows.all_inner_texts())
    marks = page.locator(".charts .plot").first.locator(".mark[aria-label^=expert_choice]")
    assert marks.count() == 0
    page.get_by_role("button", name="Show routers that look ahead").click()
    assert marks.count() == 3
    assert "Not comparable" in (marks.first.get_attribute("aria-label") or "")


def test_points_explain_themselves_to_the_mouse(page: "Page") -> None:
    mark = page.locator(".charts .plot").first.locator(".mark").nth(4)
    hover(page, mark.locator(".shape"))
    shown = tooltip(page).inner_text().splitlines()
    assert shown[0] == (mark.get_attribute("aria-label") or "").split(", Accuracy")[0]
    assert re.search(r"Accuracy: \d\d\.\d\d.% ± \d", shown[1])
    page.mouse.move(2, 2)
    assert tooltip(page).is_hidden()


def test_points_explain_themselves_to_the_keyboard(page: "Page") -> None:
    chart = page.locator(".charts .plot").first
    assert chart.locator(".mark[tabindex='0']").count() == 1, "one stop of the tab key a chart"
    chart.locator(".mark").first.focus()
    first = tooltip(page).inner_text()
    page.keyboard.press("ArrowRight")
    second = tooltip(page).inner_text()
    assert first and second and first != second
    page.keyboard.press("Escape")
    assert tooltip(page).is_hidden()


def test_the_quantity_of_the_list_changes(page: "Page") -> None:
    listed = card(page, "All configurations")
    best = listed.locator(".row-name").first.text_content()
    listed.get_by_role("button", name="Tokens/s").click()
    assert "K = 1" in (listed.locator(".row-name").first.text_content() or "")
    assert "Training throughput" in (listed.locator(".plot").text_content() or "")
    listed.get_by_role("button", name="Accuracy").click()
    assert listed.locator(".row-name").first.text_content() == best


def test_a_configuration_of_the_table_opens_its_run(page: "Page") -> None:
    page.get_by_role("button", name="Look inside topk, K = 2, aux balance").first.click()
    assert page.locator(".run-name").inner_text().startswith("topk, K = 2, aux balance, seed 0")


def test_heat_maps_are_read_with_the_arrow_keys_and_the_mouse(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    canvas = card(page, "Load over training").locator("canvas.heatmap")
    page.keyboard.press("Tab")  # the keyboard is in use: focus shows
    canvas.focus()
    assert tooltip(page).inner_text().startswith("Expert 0\nLogged at step 10\n")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert tooltip(page).inner_text().startswith("Expert 1\nLogged at step 30\n")
    assert page.locator("#live").inner_text().startswith("Expert 1, Logged at step 30, Load ")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert "step 240" in tooltip(page).inner_text(), "the last column is the last"
    canvas.blur()
    assert tooltip(page).is_hidden()
    hover(page, canvas, x=canvas.evaluate("canvas => canvas.clientWidth") - 12, y=30)
    assert tooltip(page).inner_text().startswith("Expert 0\nLogged at step 240\n")


def test_the_heat_map_shows_the_load_it_was_given(chromium_page: "Page", make_run: Make, tmp_path: Path) -> None:
    run = make_run(layers=1, experts=4, domains=("a",), top_k=1)
    result = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    result["load"] = [[300, 100, 0, 0]]  # 3 and 1 times the fair share, and two without a token
    (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
    chromium_page.emulate_media(color_scheme="light")
    chromium_page.goto(write_report([run], tmp_path / "page.html").as_uri())
    canvas = card(chromium_page, "Load on held-out data").locator("canvas.heatmap")
    # Cells are at most 84 pixels wide; near their upper left corner there is no text.
    colours = [pixel(canvas, 20 + 84 * cell + 8, 26) for cell in range(4)]
    busy, fair, idle, other_idle = colours
    assert busy[0] > 150 > busy[2], "orange for a busy expert"
    assert min(fair[:3]) > 230, "nearly white for a fair share"
    assert idle == other_idle == (0x5B, 0x2A, 0x86, 255), "purple for an expert without a token"


def test_one_layer_selector_drives_every_chart(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    page.get_by_label("Layer", exact=True).select_option(label="2")
    assert "layer 2" in (card(page, "Load over training").locator("canvas.heatmap").get_attribute("aria-label") or "")
    assert "layer 2" in card(page, "Training").locator(".legend").inner_text()
    page.get_by_role("button", name="Layer before").click()
    assert "layer 1" in (card(page, "Domains and experts").locator("canvas.heatmap").get_attribute("aria-label") or "")
    final = card(page, "Load on held-out data").locator("canvas.heatmap")
    final.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.get_by_label("Layer", exact=True).input_value() == "0"
    page.get_by_role("button", name="Layer before").click(force=True)
    assert page.get_by_label("Layer", exact=True).input_value() == "0", "there is no layer before the first"


def test_curves_are_read_with_the_arrow_keys_and_the_mouse(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    surface = card(page, "Training").locator(".surface").nth(1)
    page.keyboard.press("Tab")
    surface.focus()
    assert tooltip(page).inner_text().startswith("Step 240\nMean of the layers ")
    page.keyboard.press("Home")
    assert tooltip(page).inner_text().startswith("Step 10\n")
    surface.blur()
    hover(page, surface, x=3)
    assert tooltip(page).inner_text().startswith("Step 10\n")


def test_domain_views_and_their_table(page: "Page", gallery: Path) -> None:
    choose_run(page, LANGUAGE_RUN)
    domains = card(page, "Domains and experts")
    domains.get_by_text("As a table").click()
    headers = domains.get_by_role("columnheader").all_inner_texts()
    assert headers[:3] == ["Domain", "Bits per byte", "Expert 0"]
    result = json.loads((gallery.parent / "language" / "evaluation.json").read_text(encoding="utf-8"))
    loads = result["domain_load"][0][1]
    cells = domains.locator("tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells[0] == f"{result['per_domain']['python']:.3f}"
    assert cells[1:] == [f"{100 * load / sum(loads):.1f}\u2009%" for load in loads]
    domains.get_by_role("button", name="× even spread").click()
    assert "even spread" in domains.locator(".key").inner_text()


def test_pairs_of_experts(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    pairs = card(page, "Experts that work together")
    canvas = pairs.locator("canvas.heatmap")
    page.keyboard.press("Tab")
    canvas.focus()
    assert "No pair with itself" in tooltip(page).inner_text()
    page.keyboard.press("ArrowRight")
    one = tooltip(page).inner_text().splitlines()[1:]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert tooltip(page).inner_text().splitlines()[1:] == one, "a pair is the same from both sides"
    choose_run(page, "digits: topk, K = 1, aux balance, seed 0")
    assert "no pairs" in card(page, "Experts that work together").inner_text()


def test_every_token_has_the_experts_that_were_recorded(page: "Page", gallery: Path) -> None:
    choose_run(page, LANGUAGE_RUN)
    view = json.loads((gallery.parent / "language" / "evaluation.json").read_text(encoding="utf-8"))["token_view"][1]
    text = card(page, "A text, token by token")
    text.get_by_label("Text", exact=True).select_option(label="python")
    page.get_by_label("Layer", exact=True).select_option(label="2")
    for slot in (0, 1):
        text.get_by_label("Expert shown").select_option(index=slot)
        labels = text.locator(".token").evaluate_all("tokens => tokens.map(token => token.getAttribute('aria-label'))")
        classes = text.locator(".token").evaluate_all("tokens => tokens.map(token => token.className)")
        for token, (label, name) in enumerate(zip(labels, classes, strict=True)):
            first, second = view["experts"][2][token]
            assert f"Expert {first}, weight" in label.split("Expert", 2)[1].join(["Expert", ""])
            assert label.index(f"Expert {first},") < label.index(f"Expert {second},")
            assert name.split()[1] == f"expert-{(first, second)[slot]}"
    shown = text.locator(".text").inner_text().replace("\n", "")
    assert shown == "".join(view["tokens"]).replace("\n", "⏎")


def test_tokens_explain_themselves_and_experts_can_be_highlighted(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    text = card(page, "A text, token by token")
    hover(page, text.locator(".token").nth(3))
    assert re.search(r"token 3\nExpert \d, weight 0\.\d+\nExpert \d, weight 0\.\d+", tooltip(page).inner_text())
    text.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert "token 1\n" in tooltip(page).inner_text()
    chip = text.locator(".chip.expert").first
    expert = re.search(r"\d+", chip.get_attribute("aria-label") or "")
    assert expert is not None
    chip.focus()
    page.keyboard.press("Enter")
    assert text.locator(f".token.expert-{expert[0]}.marked").count() == text.locator(".token.marked").count() > 0
    assert text.locator(".token.dimmed").count() + text.locator(".token.marked").count() == 120
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true", "the focus stays"
    text.get_by_role("button", name="Expert numbers").click()
    assert text.locator(".token sub").count() > 0


def test_pictures_stand_with_their_experts(page: "Page", gallery: Path) -> None:
    choose_run(page, "digits: topk, K = 2, aux balance, seed 0")
    cell = gallery.parent / "digits" / "cells" / "topk-k2-aux-s0" / "evaluation.json"
    view = json.loads(cell.read_text(encoding="utf-8"))["token_view"][0]
    strongest = [experts[0] for experts in view["experts"][0]]
    pictures = card(page, "Pictures by expert")
    pictures.locator("img").first.scroll_into_view_if_needed()
    assert pictures.locator("img").evaluate_all("all => all.every(img => img.complete && img.naturalWidth === 28)")
    for group in pictures.locator(".group").all():
        head = re.match(r"Expert (\d) (\d+) picture", group.locator(".group-head").inner_text())
        assert head is not None
        assert int(head[2]) == strongest.count(int(head[1])) == group.locator("img").count()


def test_an_unfinished_run_is_shown_as_unfinished(page: "Page") -> None:
    choose_run(page, UNFINISHED_RUN)
    assert "not finished: step 230 of 240" in page.locator(".run-name").inner_text()
    assert page.get_by_text("This run has not been evaluated yet.").is_visible()
    assert card(page, "Training").locator(".plot").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page: "Page", scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    choose_run(page, LANGUAGE_RUN)
    found = page.evaluate(CONTRAST)
    assert len(found) > 30
    assert [(name, ratio) for name, ratio in found if ratio < 4.5] == []


def test_dark_follows_the_system_and_the_button(page: "Page") -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    canvas = card(page, "Load on held-out data").locator("canvas.heatmap")
    light, light_cell = ground(), pixel(canvas, 30, 40)
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Switch to light colours").wait_for()
    dark, dark_cell = ground(), pixel(canvas, 30, 40)
    assert light != dark
    assert light_cell != dark_cell, "canvases are painted again"
    page.get_by_role("button", name="Switch to light colours").click()
    assert (ground(), pixel(canvas, 30, 40)) == (light, light_cell)
    page.get_by_role("button", name="Switch to dark colours").click()
    assert ground() == dark


@pytest.mark.parametrize("label", [LANGUAGE_RUN, UNFINISHED_RUN, "digits: topk, K = 4, aux balance, seed 0"])
def test_a_phone_needs_no_sideways_scrolling(page: "Page", label: str) -> None:
    page.set_viewport_size(PHONE)
    choose_run(page, label)
    page.wait_for_function("document.querySelectorAll('.plot').length > 0")
    for summary in page.locator("details.numbers summary").all():
        summary.click()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE["width"]
    assert page.evaluate(OUTSIDE) == []


def test_a_narrower_window_draws_the_charts_again(page: "Page") -> None:
    chart = page.locator(".charts .plot").first
    wide = chart.get_attribute("width")
    page.set_viewport_size(PHONE)
    page.wait_for_function("wide => document.querySelector('.charts .plot').getAttribute('width') !== wide", arg=wide)
    assert int(chart.get_attribute("width") or 0) < PHONE["width"]


def test_everything_that_takes_the_focus_has_a_name(page: "Page") -> None:
    choose_run(page, LANGUAGE_RUN)
    assert page.evaluate(NAMELESS) == []
    labels = page.locator("main section").evaluate_all(
        "all => all.map(s => document.getElementById(s.getAttribute('aria-labelledby'))?.textContent)"
    )
    assert all(labels)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))


def test_the_tab_key_reaches_every_kind_of_control(page: "Page") -> None:
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(140):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('class')"))
    assert {"theme", "sort", "link", "run", "heatmap", "surface", "layer1"} <= {str(name).split()[0] for name in seen}


def test_printing_is_light_and_without_controls(page: "Page") -> None:
    page.emulate_media(color_scheme="dark", media="print")
    assert page.locator(".toolbar").is_hidden()
    assert page.get_by_role("button", name="Switch to").is_hidden()
    ground = page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


ATTACK = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{script}}\u2028\'"&amp;'


def test_hostile_names_are_shown_and_do_nothing(
    chromium_page: "Page", make_run: Make, make_sweep: Make, tmp_path: Path
) -> None:
    run = make_run(
        name=ATTACK,
        domains=(ATTACK, "plain"),
        texts={ATTACK: [ATTACK, "a"], "plain": ["b", ATTACK]},
        router=ATTACK,
        tokens=4,
    )
    sweep = make_sweep("sweep", [{"router": "topk", "seed": seed} for seed in (0, 1)])
    manifest = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    manifest.update(name=ATTACK, command=ATTACK, software={"torch": ATTACK}, axes={ATTACK: [ATTACK]}, skipped=[ATTACK])
    (sweep / "sweep.json").write_text(json.dumps(manifest), encoding="utf-8")
    chromium_page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
    chromium_page.goto(write_report([run, sweep], tmp_path / "page.html").as_uri())
    choose = chromium_page.get_by_label("Run", exact=True)
    choose.select_option(index=choose.locator("option").count() - 1)
    text = card(chromium_page, "A text, token by token")
    hover(chromium_page, text.locator(".token").first)
    assert "<img src=x" in tooltip(chromium_page).inner_text()
    assert ATTACK.split("\u2028", maxsplit=1)[0] in text.locator(".token").first.inner_text()
    for summary in chromium_page.locator("details.numbers summary").all():
        summary.click()
    assert chromium_page.evaluate("window.hacked") is None
    assert chromium_page.locator("img").count() == 0
    assert chromium_page.locator("script").count() == 2
    assert "<img src=x" in chromium_page.title()


def test_a_deepseek_sized_page_is_quick(chromium_page: "Page", make_run: Make, tmp_path: Path) -> None:
    run = make_run(layers=58, experts=256, top_k=8, log_steps=30, tokens=48, domains=("english", "python"))
    chromium_page.goto(write_report([run], tmp_path / "page.html").as_uri())
    switch = """() => { const start = performance.now(); const layer = document.getElementById("layer");
      layer.selectedIndex = 40; layer.dispatchEvent(new Event("change")); return performance.now() - start; }"""
    assert chromium_page.evaluate(switch) < 2000
    label = card(chromium_page, "Load over training").locator("canvas.heatmap").get_attribute("aria-label")
    assert label is not None
    assert "layer 40" in label


@pytest.mark.parametrize(
    "settings", [{"layers": 1}, {"control": "dense"}, {"top_k": 1}, {"experts": 2}, {"log_steps": 1}]
)
def test_small_runs_of_every_shape_open(
    chromium_page: "Page", make_run: Make, tmp_path: Path, settings: dict[str, Any]
) -> None:
    chromium_page.goto(write_report([make_run(**settings)], tmp_path / "page.html").as_uri())
    assert chromium_page.locator(".run-name").is_visible()
    assert card(chromium_page, "Training").is_visible()


def test_without_javascript_it_says_so(browser: "Browser", gallery: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(gallery.as_uri())
    assert page.get_by_text("draws its tables and charts with JavaScript").is_visible()
    context.close()
