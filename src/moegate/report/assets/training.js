// What a run did while it trained: curves, and the load of each expert of a layer over time.
function curve(width, { steps, values, band, second, name, kind, bounds, show, label }) {
  const lows = band ? band.low : values;
  const highs = band ? band.high : values;
  const domain = padded([...lows, ...highs, ...(second ?? [])], bounds);
  const last = steps.at(-1);
  const xDomain = [steps.length > 1 ? steps[0] : 0, steps.length > 1 ? last : last + 1];
  const plot = frame(width, 220, {
    label, x: { domain: xDomain, kind: "compact", name: "Step" }, y: { domain, kind, name },
  });
  const along = (list) => list.map((value, index) => [plot.toX(steps[index]), present(value) ? plot.toY(value) : null]);
  if (band) {
    const edge = [...along(band.high), ...along(band.low).reverse()].filter(([, y]) => present(y));
    plot.marks.append(svg("path", { class: "band", d: `${linePath(edge)}Z` }));
  }
  plot.marks.append(svg("path", { class: "line series-0", d: linePath(along(values)) }));
  if (second) plot.marks.append(svg("path", { class: "line series-1", d: linePath(along(second)) }));
  const cursor = svg("line", { class: "cursor", y1: plot.box.top, y2: plot.box.bottom, visibility: "hidden" });
  plot.marks.append(cursor);
  const surface = svg("rect", {
    class: "surface", x: plot.box.left, y: plot.box.top, width: plot.box.right - plot.box.left, height: plot.box.bottom - plot.box.top,
    tabindex: 0, "data-mark": true, role: "application", "aria-roledescription": "chart", "aria-label": `${label}. Arrow keys read the values.`,
  });
  let at = steps.length - 1;
  const point = (index, spoken) => {
    at = clamp(index, [0, steps.length - 1]);
    const x = plot.toX(steps[at]);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const lines = [`Step ${whole(steps[at])}`, ...show(at)];
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

// Mean, smallest and largest over the layers, at each logged point.
function overLayers(packed) {
  const levels = unpackLevels(packed);
  const [layers, points] = levels.shape;
  const column = (point) => range(layers).map((layer) => levels.at(layer, point));
  const columns = range(points).map(column);
  return {
    mean: columns.map((values) => values.reduce((sum, value) => sum + value, 0) / layers),
    low: columns.map((values) => Math.min(...values)),
    high: columns.map((values) => Math.max(...values)),
    layer: (layer) => range(points).map((point) => levels.at(layer, point)),
    layers,
  };
}

const layered = {
  max_violation: { title: "MaxVio", name: "Busiest expert / fair share − 1", kind: "number", bounds: { zero: true }, show: (value) => fixed(value, 2) },
  utilization: { title: "Experts in use", name: "Share of experts with a token", kind: "percent", bounds: { zero: true, ceiling: 1 }, show: percent },
  drop_rate: { title: "Drop rate", name: "Assignments dropped", kind: "percent", bounds: { zero: true, ceiling: 1 }, show: (value) => percent(value, 2) },
};

function trainingCurves(run) {
  const { curves } = run;
  const steps = curves.step;
  if (!steps.length) return { element: card("Training", null, el("p", { class: "empty" }, "Nothing has been logged yet.")) };
  const grid = el("div", { class: "charts two" });
  const update = (layer) => {
    const figures = [figure("Training loss", (width) => curve(width, {
      steps, values: curves.loss, name: "Cross-entropy", kind: "number", bounds: { floor: 0 }, label: "Training loss over steps",
      show: (at) => [`Loss ${fixed(curves.loss[at], 4)}`, present(curves.tokens_per_second[at]) && `${compact(curves.tokens_per_second[at])} tokens/s`].filter(Boolean),
    }))];
    const silent = [];
    for (const [key, { title, name, kind, bounds, show }] of Object.entries(layered)) {
      if (!curves[key]) continue;
      const { mean, low, high, layer: valuesOf, layers } = overLayers(curves[key]);
      if (key === "drop_rate" && Math.max(...high.filter(present), 0) === 0) {
        silent.push("No assignment was dropped during training.");
        continue;
      }
      if (key === "utilization" && Math.min(...low.filter(present)) === 1) {
        silent.push("Every expert of every layer was in use at every logged step.");
        continue;
      }
      const second = valuesOf(layer);
      figures.push(figure(title, (width) => curve(width, {
        steps, values: mean, band: layers > 1 ? { low, high } : null, second: layers > 1 ? second : null,
        name, kind, bounds, label: `${title} over steps`,
        show: (at) => layers > 1
          ? [`Mean of the layers ${show(mean[at])}`, `Layer ${layer}: ${show(second[at])}`, `From ${show(low[at])} to ${show(high[at])}`]
          : [`${title} ${show(mean[at])}`],
      })));
    }
    grid.replaceChildren(...figures);
    remarks.replaceChildren(...silent.map((text) => el("li", {}, text)));
    key.replaceChildren(...(run.num_layers > 1 && curves.max_violation ? [
      el("li", {}, swatchLine("line series-0"), "mean of the layers"),
      el("li", {}, swatchLine("line series-1"), `layer ${layer}`),
      el("li", {}, swatchLine("band wide"), "from the lowest to the highest layer"),
    ] : []));
  };
  const key = el("ul", { class: "legend", "aria-label": "Legend" });
  const remarks = el("ul", { class: "hint below" });
  const numbers = asTable("Loss as a table", () =>
    plainTable("Training loss", ["Step", "Loss"], steps.map((step, index) => [whole(step), fixed(curves.loss[index], 4)])));
  const element = card("Training", null, key, grid, remarks, numbers);
  element.classList.add("wide");
  return { element, update };
}

function swatchLine(name) {
  return svg("svg", { width: 26, height: 14, "aria-hidden": "true" }, svg("path", { class: name, d: "M0,7H26" }));
}

function loadOverTraining(run) {
  if (!run.load) return null;
  const ratio = unpackRatios(run.load.ratio);
  const [windows, , experts] = ratio.shape;
  const body = el("div");
  const span = (window) => {
    const [first, last] = [run.load.first_step[window], run.load.last_step[window]];
    return first === last ? `Logged at step ${whole(last)}` : `Logged from step ${whole(first)} to ${whole(last)}`;
  };
  const update = (layer) => {
    body.replaceChildren(
      heatmap({
        rows: experts, cols: windows, rowName: "Expert", colName: "Training step",
        rowLabel: String, colLabel: (window) => compactTick(run.load.last_step[window]),
        label: `Load of each expert of layer ${layer} over training`,
        colour: (expert, window) => balanceColour(ratio.at(window, layer, expert)),
        describe: (expert, window) => [`Expert ${expert}`, span(window), `Load ${times(ratio.at(window, layer, expert))} its fair share`],
      }),
      asTable("As a table: the last window", () =>
        plainTable(`Load in the last window, layer ${layer}`, ["Expert", "Load / fair share"],
          range(experts).map((expert) => [String(expert), times(ratio.at(windows - 1, layer, expert))]))));
  };
  return {
    element: card("Load over training", "One line an expert, time from left to right. Orange is more than a fair share of the tokens, blue is less.", balanceKey(), body),
    update,
  };
}
