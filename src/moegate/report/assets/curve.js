// Curves over one axis, training steps or layers, read with the mouse or the arrow keys.
// `axis` says where the points stand: their `steps`, the `name` of the axis, and `title(at)` of one of them.
function curve(width, { axis, values, band, second, name, kind, bounds, show, label, marked }) {
  const { steps } = axis;
  const lows = band ? band.low : values;
  const highs = band ? band.high : values;
  const domain = padded([...lows, ...highs, ...(second ?? [])], bounds);
  const last = steps.at(-1);
  const xDomain = [steps.length > 1 ? steps[0] : 0, steps.length > 1 ? last : last + 1];
  const plot = frame(width, 220, { label, x: { kind: "compact", ...axis, domain: xDomain }, y: { domain, kind, name } });
  const along = (list) => list.map((value, index) => [plot.toX(steps[index]), present(value) ? plot.toY(value) : null]);
  if (present(marked)) {
    const x = plot.toX(steps[marked]);
    plot.marks.append(svg("line", { class: "now", x1: x, x2: x, y1: plot.box.top, y2: plot.box.bottom }));
  }
  if (band) {
    const edge = [...along(band.high), ...along(band.low).reverse()].filter(([, y]) => present(y));
    plot.marks.append(svg("path", { class: "band", d: `${linePath(edge)}Z` }));
  }
  plot.marks.append(svg("path", { class: "line series-0", d: linePath(along(values)) }));
  if (second) plot.marks.append(svg("path", { class: "line series-1", d: linePath(along(second)) }));
  if (axis.dots) {
    for (const [list, series] of [[values, "series-0"], [second ?? [], "series-1"]]) {
      plot.marks.append(...along(list).filter(([, y]) => present(y)).map(([cx, cy]) => svg("circle", { class: `dot ${series}`, cx, cy, r: 3 })));
    }
  }
  const cursor = svg("line", { class: "cursor", y1: plot.box.top, y2: plot.box.bottom, visibility: "hidden" });
  plot.marks.append(cursor);
  const surface = svg("rect", {
    class: "surface", x: plot.box.left, y: plot.box.top, width: plot.box.right - plot.box.left, height: plot.box.bottom - plot.box.top,
    tabindex: 0, "data-mark": true, role: "application", "aria-roledescription": "chart", "aria-label": `${label}. Arrow keys read the values.`,
  });
  let at = marked ?? steps.length - 1;
  const point = (index, spoken) => {
    at = clamp(index, [0, steps.length - 1]);
    const x = plot.toX(steps[at]);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const lines = [axis.title(at), ...show(at)];
    const box = plot.drawing.getBoundingClientRect();
    showTooltip(lines, box.left + x * (box.width / width), box.top + plot.box.top);
    if (spoken) announce(lines);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTooltip();
  };
  const track = (event) => {
    const box = plot.drawing.getBoundingClientRect();
    const x = (event.clientX - box.left) * (width / box.width);
    const distance = steps.map((step) => Math.abs(plot.toX(step) - x));
    point(distance.indexOf(Math.min(...distance)), false);
  };
  surface.addEventListener("pointermove", track);
  surface.addEventListener("pointerdown", track);
  surface.addEventListener("pointerleave", leave);
  surface.addEventListener("focus", () => { if (surface.matches(":focus-visible")) point(at, true); });
  surface.addEventListener("blur", leave);
  surface.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1, PageUp: at - 10, PageDown: at + 10 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    point(moves[event.key], true);
  });
  plot.drawing.append(surface);
  return plot.drawing;
}

function swatchLine(name) {
  return svg("svg", { width: 26, height: 14, "aria-hidden": "true" }, svg("path", { class: name, d: "M0,7H26" }));
}
