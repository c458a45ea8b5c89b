// A sweep: filters, curves over K, quality against speed, all configurations side by side, the table.
function seriesOf(row) {
  if (row.control === "dense") return "Dense model of the active size";
  const balance = row.balance === "none" ? "" : ` · ${row.balance}`;
  return row.router + balance + (row.control === "frozen" ? " · frozen random gate" : "");
}

// Colour says the router, shape the balance; controls are hollow and dashed, the dense one grey.
function stylesOf(rows) {
  const routers = unique(rows.filter((row) => row.control !== "dense").map((row) => row.router));
  const balances = unique(rows.map((row) => row.balance));
  return (row) => {
    const colour = routers.indexOf(row.router);
    return {
      class: row.control === "dense" ? "series-grey" : `series-${colour % 8}`,
      shape: row.control === "dense" ? 1 : row.control ? 3 : balances.length > 1 ? balances.indexOf(row.balance) : colour,
      hollow: row.control !== null || !row.comparable,
      dashed: row.control !== null || !row.comparable,
    };
  };
}

function filterGroup(name, values, chosen, changed, text = String) {
  return el("div", { class: "filter", role: "group", "aria-label": `Show ${name}` },
    el("span", { class: "filter-name", "aria-hidden": "true" }, name),
    values.map((value) => el("button", {
      type: "button", class: "chip", "aria-pressed": String(chosen.has(value)),
      onclick: (event) => {
        if (!chosen.delete(value)) chosen.add(value);
        event.currentTarget.setAttribute("aria-pressed", String(chosen.has(value)));
        changed();
      },
    }, text(value))));
}

function filters(rows, changed) {
  const fields = [
    ["Router", (row) => (row.control === "dense" ? null : row.router)],
    ["K", (row) => row.top_k],
    ["Balance", (row) => (row.control ? null : row.balance)],
    ["Control", (row) => row.control],
  ].map(([name, of]) => {
    const values = unique(rows.map(of)).filter((value) => value !== null);
    return { name, of, values, chosen: new Set(values) };
  }).filter(({ name, values }) => (name === "Control" ? values.length : values.length > 1));
  const leaky = new Set();
  // The table lists a router that looks ahead, flagged; the charts leave it out until asked.
  const listed = (row) => fields.every(({ of, chosen }) => of(row) === null || chosen.has(of(row)));
  const keeps = (row) => listed(row) && (row.comparable || leaky.has(true));
  const groups = fields.map(({ name, values, chosen }) => filterGroup(name, values, chosen, changed));
  if (rows.some((row) => !row.comparable)) {
    groups.push(filterGroup("Not comparable", [true], leaky, changed, () => "Show routers that look ahead"));
  }
  return { element: groups.length ? el("div", { class: "filters" }, groups) : null, keeps, listed };
}

function rowLines(row, metric) {
  return [
    row.label,
    `${metrics[metric].name}: ${withSpread(metric, row.mean, row.ci95)} (${plural(row.seeds, "seed")})`,
    present(row.tokens_per_second) && `${compact(row.tokens_per_second)} tokens/s`,
    present(row.max_violation) && `MaxVio ${fixed(row.max_violation, 2)}`,
    !row.comparable && "Not comparable",
  ].filter(Boolean);
}

const limits = (metric) => (metric === "accuracy" ? { floor: 0, ceiling: 1 } : { floor: 0 });
const axisKind = (metric) => (metric === "accuracy" ? "percent" : "number");

function curveOverK(width, rows, styleOf, metric, quantity) {
  const { value, ci95, name, kind } = quantity;
  const counts = unique(rows.map((row) => row.top_k)).sort((one, other) => one - other);
  const plot = frame(width, 300, {
    label: `${name} by K, with 95 % intervals`,
    x: { domain: [counts[0] / 1.15, counts.at(-1) * 1.15], log: true, ticks: counts, kind: "number", name: "K, experts per token" },
    y: { domain: paddedWithIntervals(rows, quantity), kind, name },
  });
  const marks = [];
  const all = unique(rows.map(seriesOf));
  for (const [index, series] of all.entries()) {
    // Side by side, so that the intervals of one K do not hide each other.
    const aside = (index - (all.length - 1) / 2) * Math.min(9, 48 / all.length);
    const points = rows.filter((row) => seriesOf(row) === series).sort((one, other) => one.top_k - other.top_k);
    const style = styleOf(points[0]);
    plot.marks.append(svg("path", {
      class: `line ${style.class}${style.dashed ? " dashed" : ""}`,
      d: linePath(points.map((row) => [plot.toX(row.top_k) + aside, plot.toY(value(row))])),
    }));
    marks.push(...points.map((row) => {
      const x = plot.toX(row.top_k) + aside;
      const ends = interval(value(row), ci95(row)).map((end) => clamp(plot.toY(end), [plot.box.top, plot.box.bottom]));
      return pointMark({
        x, y: plot.toY(value(row)), style, lines: rowLines(row, metric),
        intervals: present(ci95(row)) ? [[x, ends[0], x, ends[1]]] : [],
      });
    }));
  }
  plot.marks.append(...marks);
  pickable(plot.drawing, marks);
  return plot.drawing;
}

function qualityAgainstSpeed(width, rows, styleOf, metric, { quality, speed }) {
  const timed = rows.filter((row) => present(row.tokens_per_second));
  if (!timed.length) return el("p", { class: "empty" }, "No throughput was measured.");
  const plot = frame(width, 300, {
    label: `${metrics[metric].name} against training throughput`,
    x: { domain: paddedWithIntervals(timed, { ...speed, bounds: { floor: 0 } }), kind: "compact", name: "Training throughput, tokens/s" },
    y: { domain: paddedWithIntervals(timed, quality), kind: quality.kind, name: metrics[metric].name },
  });
  const marks = timed.map((row) => {
    const [x, y] = [plot.toX(row.tokens_per_second), plot.toY(row.mean)];
    const [x1, x2] = interval(row.tokens_per_second, row.tokens_per_second_ci95)
      .map((end) => clamp(plot.toX(end), [plot.box.left, plot.box.right]));
    const [y1, y2] = interval(row.mean, row.ci95).map((end) => clamp(plot.toY(end), [plot.box.top, plot.box.bottom]));
    return pointMark({ x, y, style: styleOf(row), lines: rowLines(row, metric), intervals: [[x1, y, x2, y], [x, y1, x, y2]] });
  });
  plot.marks.append(...marks);
  pickable(plot.drawing, marks);
  return plot.drawing;
}

function quantities(metric) {
  const known = metrics[metric];
  const kind = axisKind(metric);
  const none = () => null;
  return {
    quality: { name: `${known.name} (${known.better})`, value: (row) => row.mean, ci95: (row) => row.ci95, kind, bounds: limits(metric), show: known.show },
    speed: { name: "Training throughput, tokens/s", value: (row) => row.tokens_per_second, ci95: (row) => row.tokens_per_second_ci95, kind: "compact", bounds: { floor: 0, zero: true }, show: compact },
    violation: { name: "MaxVio: busiest expert over its fair share − 1", value: (row) => row.max_violation, ci95: none, kind: "number", bounds: { zero: true }, show: (value) => fixed(value, 2) },
    utilization: { name: "Utilisation: effective experts / experts", value: (row) => row.utilization, ci95: none, kind: "percent", bounds: { zero: true, ceiling: 1 }, show: percent },
    drops: { name: "Assignments dropped", value: (row) => row.drop_rate, ci95: none, kind: "percent", bounds: { zero: true, ceiling: 1 }, show: percent },
  };
}

// All configurations, one a line, the best on top.
function sideBySide(width, rows, styleOf, metric, quantity, lowerFirst) {
  const { value, ci95, name, kind } = quantity;
  const shown = rows.filter((row) => present(value(row)))
    .sort((one, other) => (lowerFirst ? 1 : -1) * (value(one) - value(other)));
  if (!shown.length) return el("p", { class: "empty" }, "Not measured.");
  const narrow = width < 560;
  const line = narrow ? 42 : 28;
  const left = narrow ? 8 : Math.min(320, Math.max(...shown.map((row) => row.label.length)) * 6.7 + 20);
  const height = 34 + shown.length * line + 40;
  const right = width - 76;
  const domain = paddedWithIntervals(shown, quantity);
  const toX = linear(domain, [left, right]);
  const ticks = niceTicks(domain, (right - left) / 90);
  const text = tickText(kind, ticks);
  const bottom = height - 40;
  const marks = [];
  const drawing = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${name}, all configurations` },
    svg("text", { class: "axis-name", x: left, y: height - 6 }, name),
    ticks.map((tick) => [
      svg("line", { class: "grid", x1: toX(tick), x2: toX(tick), y1: 16, y2: bottom }),
      svg("text", { class: "tick", x: toX(tick), y: bottom + 16, "text-anchor": "middle" }, text(tick)),
    ]),
    shown.map((row, index) => {
      const y = 22 + index * line + (narrow ? 27 : line / 2);
      const [x1, x2] = interval(value(row), ci95(row)).map((end) => clamp(toX(end), [left, right]));
      const style = styleOf(row);
      marks.push(pointMark({ x: toX(value(row)), y, style, lines: rowLines(row, metric), intervals: present(ci95(row)) ? [[x1, y, x2, y]] : [] }));
      return [
        svg("text", { class: `row-name${row.control ? " control" : ""}`, x: narrow ? left : left - 14, y: narrow ? y - 13 : y + 4, "text-anchor": narrow ? "start" : "end" }, row.label),
        svg("line", { class: "row-line", x1: left, x2: right, y1: y, y2: y }),
        marks.at(-1),
        svg("text", { class: "row-value", x: width - 4, y: y + 4, "text-anchor": "end" }, quantity.show(value(row))),
      ];
    }));
  pickable(drawing, marks);
  return drawing;
}

function comparison(sweep, choose) {
  const known = sweep.rows.filter((row) => row.mean !== null);
  const charts = el("div", { class: "charts" });
  const legend = el("ul", { class: "legend", "aria-label": "Legend" });
  const list = el("div");
  const body = el("div");
  const styleOf = stylesOf(known);
  const all = quantities(sweep.metric);
  let measure = "quality";

  const drawList = (rows) => {
    const lowerFirst = measure === "violation" || measure === "drops" || (measure === "quality" && sweep.lower_is_better);
    list.replaceChildren(responsive(el("div", { class: "canvas" }), (width) =>
      sideBySide(width, rows, styleOf, sweep.metric, all[measure], lowerFirst)));
  };
  const draw = () => {
    const rows = known.filter(keeps);
    body.replaceChildren(...summaryTable(sweep, sweep.rows.filter(listed), choose).filter(Boolean));
    legend.replaceChildren(...unique(rows.map(seriesOf)).map((series) =>
      legendItem(styleOf(rows.find((row) => seriesOf(row) === series)), series)));
    if (!rows.length) {
      charts.replaceChildren(el("p", { class: "empty" }, "No configuration is left: choose more of the filters above."));
      list.replaceChildren();
      return;
    }
    const sized = rows.filter((row) => row.top_k !== null);
    const timed = sized.filter((row) => present(row.tokens_per_second));
    const overK = unique(sized.map((row) => row.top_k)).length > 1;
    charts.replaceChildren(...[
      overK && figure(`${metrics[sweep.metric].name} by K`, (width) => curveOverK(width, sized, styleOf, sweep.metric, all.quality)),
      overK && timed.length > 0 && figure("Speed by K", (width) => curveOverK(width, timed, styleOf, sweep.metric, all.speed)),
      figure(`${metrics[sweep.metric].name} against speed`, (width) => qualityAgainstSpeed(width, rows, styleOf, sweep.metric, all)),
    ].filter(Boolean));
    drawList(rows);
  };
  const { element, keeps, listed } = filters(known, draw);
  draw();
  const several = known.length > 1;
  return [
    element,
    several && card("Quality and speed", "Points are means over the seeds; bars are 95 % confidence intervals, cut where they leave the chart. Hollow marks are yardsticks, not routers to choose from.", legend, charts),
    several && card("All configurations", "The best is on top.",
      segmented("Quantity", [["quality", metrics[sweep.metric].name], ["speed", "Tokens/s"], ["violation", "MaxVio"], ["utilization", "Utilisation"], ["drops", "Dropped"]],
        measure, (chosen) => { measure = chosen; drawList(known.filter(keeps)); }), list),
    card("Summary table", "Choose a column to sort by it, a configuration to look inside its first run.", body),
  ].filter(Boolean);
}
