// What a run did while it trained: curves, and the load of each expert of a layer over time.
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
  const axis = { steps, name: "Step", title: (at) => `Step ${whole(steps[at])}` };
  const update = (layer) => {
    const figures = [figure("Training loss", (width) => curve(width, {
      axis, values: curves.loss, name: "Cross-entropy", kind: "number", bounds: { floor: 0 }, label: "Training loss over steps",
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
        axis, values: mean, band: layers > 1 ? { low, high } : null, second: layers > 1 ? second : null,
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

function loadOverTraining(run) {
  if (!run.load) return null;
  const body = el("div");
  const span = (window) => {
    const [first, last] = [run.load.first_step[window], run.load.last_step[window]];
    return first === last ? `Logged at step ${whole(last)}` : `Logged from step ${whole(first)} to ${whole(last)}`;
  };
  const view = {
    ratio: unpackRatios(run.load.ratio), name: "Training step", table: "training", span,
    short: (window) => compactTick(run.load.last_step[window]),
  };
  return {
    element: card("Load over training", "One line an expert, time from left to right. Orange is more than a fair share of the tokens, blue is less.", balanceKey(), body),
    update: (layer) => body.replaceChildren(...loadOver(run, view, layer)),
  };
}
