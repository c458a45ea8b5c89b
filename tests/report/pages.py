"""What the tests of the pages share: finding a card, pointing at it, and what holds for every page."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

CONTRAST = """() => {
  const parse = (text) => { const c = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const skipped = "script, style, .unseen, .skip, [aria-disabled=true], .dimmed";
  const worst = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(skipped)) continue;
    const inSvg = element.closest("svg");
    const ink = parse(getComputedStyle(element)[inSvg ? "fill" : "color"]);
    let ground = null;
    for (let at = element; at && !ground; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) ground = colour;
    }
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const key = `${element.tagName}.${element.getAttribute("class")}`;
    if (!worst.has(key) || worst.get(key) > ratio) worst.set(key, ratio);
  }
  return [...worst];
}"""
"""Text by element, with the worst contrast to its ground."""

OUTSIDE = """() => [...document.querySelectorAll("main *")].filter((element) =>
  !element.closest(".scroll, .unseen, .text, svg") && element.getBoundingClientRect().right > innerWidth + 1)
  .map((element) => element.outerHTML.slice(0, 80))"""
"""Elements that reach past the right edge of the window."""

NAMELESS = """() => [...document.querySelectorAll("a, button, select, summary, [tabindex='0']")].filter((element) =>
  element.checkVisibility() && !(element.getAttribute("aria-label") || element.textContent.trim()
  || element.labels?.[0]?.textContent)).map((element) => element.outerHTML.slice(0, 100))"""
"""Elements that take the focus and have no name."""


def card(page: "Page", title: str) -> "Locator":
    return page.locator("section.card", has=page.get_by_role("heading", name=title, exact=True))


def tooltip(page: "Page") -> "Locator":
    return page.locator("#tooltip")


def hover(page: "Page", target: "Locator", x: float | None = None, y: float | None = None) -> None:
    """Move the mouse onto a mark, by default to its middle, once scrolling has come to rest."""
    target.scroll_into_view_if_needed()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = target.bounding_box()
    assert box is not None
    page.mouse.move(
        box["x"] + (box["width"] / 2 if x is None else x), box["y"] + (box["height"] / 2 if y is None else y)
    )


def pixel(canvas: "Locator", x: float, y: float) -> tuple[int, ...]:
    """Colour at a place given in the canvas's own CSS pixels."""
    read = """(canvas, [x, y]) => { const density = canvas.width / canvas.clientWidth;
      return [...canvas.getContext("2d").getImageData(x * density, y * density, 1, 1).data]; }"""
    return tuple(canvas.evaluate(read, [x, y]))
