// SVG charts: axes, marks, lines. Colours come from CSS classes, so that the theme needs no new drawing.
const shapes = [
  "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z", // circle
  "M-4,-4H4V4H-4Z", // square
  "M0,-5.4L5,3.8H-5Z", // triangle
  "M0,-5.6L5.6,0L0,5.6L-5.6,0Z", // diamond
  "M0,5.4L5,-3.8H-5Z", // triangle, point down
  "M-1.7,-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z", // plus
  "M-4.6,-2.6L0,-5.3L4.6,-2.6V2.6L0,5.3L-4.6,2.6Z", // hexagon
  "M0,-5.8L1.7,-1.8L5.6,-1.8L2.4,0.8L3.6,5L0,2.5L-3.6,5L-2.4,0.8L-5.6,-1.8L-1.7,-1.8Z", // star
];

// `render(width)` gives the drawing for a width; it is drawn again when the width changes.
function responsive(host, render) {
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(host.clientWidth);
    if (!width || Math.abs(width - drawn) < 2) return;
    drawn = width;
    host.replaceChildren(...[render(width)].flat());
  }).observe(host);
  return host;
}

function niceTicks([low, high], about) {
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  return ticks;
}

const tickDigits = (ticks) => {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  return range(7).find((digits) => Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-6) ?? 6;
};

const compactTick = (tick) => (tick === 0 ? "0" : compact(tick).replace(/(\.\d*?)0+(?=\D)/, "$1").replace(/\.(?=\D)/, ""));

// The numbers of an axis: whole percent where they are whole, thousands by their letter.
function tickText(kind, ticks) {
  if (kind === "percent") {
    const digits = tickDigits(ticks.map((tick) => 100 * tick));
    return (tick) => percent(tick, digits);
  }
  if (kind === "compact") return compactTick;
  const digits = tickDigits(ticks);
  return (tick) => fixed(tick, digits);
}

// Room around the values, and no further than a quantity can go.
function padded(values, { floor = -Infinity, ceiling = Infinity, zero = false } = {}) {
  const known = values.filter(present);
  if (!known.length) return [0, 1];
  let [low, high] = [Math.min(...known), Math.max(...known)];
  if (zero) low = Math.min(0, low);
  if (zero && high === 0) high = 1;
  const room = (high - low || Math.abs(high) * 0.1 || 1) * 0.08;
  return [zero && low === 0 ? 0 : Math.max(floor, low - room), Math.min(ceiling, high + room)];
}

// Room for the means and for their intervals, but an interval many times wider than all means together (two
// seeds) is cut at the edge: it would press everything else into one line.
function paddedWithIntervals(rows, quantity) {
  const { value, ci95, bounds } = quantity;
  const means = rows.map(value).filter(present);
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const reach = Math.max(high - low, Math.abs(high) * 0.02) * 1.5;
  const ends = rows.flatMap((row) => interval(value(row), ci95(row)));
  return padded([...means, ...ends.map((end) => clamp(end, [low - reach, high + reach]))], bounds);
}

const interval = (value, ci95) => (present(ci95) ? [value - ci95, value + ci95] : [value, value]);

// Within the plot only: an interval can reach past its edge.
const clamp = (value, [from, to]) => Math.min(Math.max(value, Math.min(from, to)), Math.max(from, to));

const linear = ([low, high], [from, to]) => (value) => from + ((value - low) / (high - low)) * (to - from);

// An empty plot: grid, axes with their names and units. Gives the scales and the group to draw into.
function frame(width, height, { x, y, label }) {
  const yTicks = y.ticks ?? niceTicks(y.domain, (height - 70) / 40);
  const yText = tickText(y.kind, yTicks);
  const left = Math.max(...yTicks.map((tick) => yText(tick).length)) * 6.6 + 14;
  const box = { left, right: width - 16, top: 30, bottom: height - 44 };
  const xScale = linear(x.log ? x.domain.map(Math.log2) : x.domain, [box.left, box.right]);
  const toX = x.log ? (value) => xScale(Math.log2(value)) : xScale;
  const toY = linear(y.domain, [box.bottom, box.top]);
  const xTicks = x.ticks ?? niceTicks(x.domain, (box.right - box.left) / 80);
  const xText = x.text ?? tickText(x.kind, xTicks);
  const marks = svg("g");
  const drawing = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label },
    svg("text", { class: "axis-name", x: 0, y: 14 }, y.name),
    yTicks.map((tick) => [
      svg("line", { class: "grid", x1: box.left, x2: box.right, y1: toY(tick), y2: toY(tick) }),
      svg("text", { class: "tick", x: box.left - 8, y: toY(tick) + 4, "text-anchor": "end" }, yText(tick)),
    ]),
    svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    xTicks.map((tick) =>
      svg("text", { class: "tick", x: toX(tick), y: box.bottom + 18, "text-anchor": "middle" }, xText(tick))),
    svg("text", { class: "axis-name", x: box.right, y: height - 6, "text-anchor": "end" }, x.name),
    marks);
  return { drawing, marks, toX, toY, box };
}

// Line segments through the known values; a missing one leaves a gap.
function linePath(points) {
  let pen = "M";
  return points.map(([x, y]) => {
    if (!present(y)) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

// A point with its intervals, and what its tooltip says.
function pointMark({ x, y, style, intervals, lines }) {
  const mark = svg("g", { class: `mark ${style.class}`, "data-mark": true, role: "img" },
    intervals.map(([x1, y1, x2, y2]) => svg("line", { class: "interval", x1, y1, x2, y2 })),
    svg("g", { transform: `translate(${x} ${y})` },
      svg("circle", { class: "halo", r: 10 }),
      svg("path", { class: `shape${style.hollow ? " hollow" : ""}`, d: shapes[style.shape % shapes.length] })));
  explain(mark, () => lines);
  return Object.assign(mark, { spot: [x, y], lines });
}

// Points may lie on top of each other: the mouse picks the nearest one, the arrow keys go through all.
function pickable(drawing, marks) {
  const reach = 26;
  let near = null;
  const leave = () => {
    near?.classList.remove("near");
    near = null;
    hideTooltip();
  };
  const track = (event) => {
    const box = drawing.getBoundingClientRect();
    const scale = drawing.viewBox.baseVal.width / box.width;
    const distance = ({ spot: [x, y] }) => Math.hypot((event.clientX - box.left) * scale - x, (event.clientY - box.top) * scale - y);
    const nearest = marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best));
    if (distance(nearest) > reach) {
      leave();
      return;
    }
    near?.classList.remove("near");
    near = nearest;
    near.classList.add("near");
    showTooltip(near.lines, box.left + near.spot[0] / scale, box.top + near.spot[1] / scale - 8);
  };
  drawing.addEventListener("pointermove", track);
  drawing.addEventListener("pointerdown", track);
  drawing.addEventListener("pointerleave", leave);
  roving(drawing, marks);
}

function legendItem(style, text) {
  return el("li", {},
    svg("svg", { class: style.class, width: 26, height: 14, "aria-hidden": "true" },
      svg("path", { class: `line${style.dashed ? " dashed" : ""}`, d: "M0,7H26" }),
      svg("path", { class: `shape${style.hollow ? " hollow" : ""}`, d: shapes[style.shape % shapes.length], transform: "translate(13 7)" })),
    text);
}

function figure(title, render) {
  return el("figure", {}, el("figcaption", {}, title), responsive(el("div", { class: "canvas" }), render));
}
