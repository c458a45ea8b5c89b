// One tooltip for the whole page: for the mouse, for the keyboard, for touch.
const tooltip = document.getElementById("tooltip");
const live = document.getElementById("live");

function showTooltip([title, ...lines], x, y) {
  tooltip.replaceChildren(el("strong", {}, title), ...lines.map((line) => el("span", {}, line)));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x - width / 2), document.documentElement.clientWidth - width - 8);
  const above = y - height - 12;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${above > 8 ? above : y + 16}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
}

const announce = (lines) => { live.textContent = lines.join(", "); };

// `lines` gives the title and the lines of the tooltip of `mark`; the same text is its accessible name.
function explain(mark, lines) {
  const show = () => {
    const box = mark.getBoundingClientRect();
    showTooltip(lines(), box.left + box.width / 2, box.top);
  };
  mark.setAttribute("aria-label", lines().join(", "));
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("pointerleave", hideTooltip);
  mark.addEventListener("focus", show);
  mark.addEventListener("blur", hideTooltip);
}

addEventListener("keydown", (event) => { if (event.key === "Escape") hideTooltip(); });
addEventListener("scroll", (event) => {
  // Moving the focus scrolls too: keep the tooltip of what is focused.
  if (!document.activeElement?.matches("canvas, [data-mark]")) hideTooltip();
}, { passive: true, capture: true });
