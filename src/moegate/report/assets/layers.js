// A trace layer by layer: the table, the curves over depth, the load over the recording.
const expertList = (experts) => experts.map(([expert, load]) => `${expert} (${fixed(load, load < 1 ? 2 : 1)})`).join(", ");

function layerColumns(run) {
  const lines = run.table;
  const some = (name) => lines.some((line) => present(line[name]));
  return [
    { name: "Layer", value: (line) => line.layer, text: (line) => layerName(run, line.layer) },
    { name: "Load", note: "lowest – highest", value: (line) => line.greatest_load, text: (line) => `${times(line.least_load)} – ${times(line.greatest_load)}` },
    { name: "Effective", note: "experts", value: (line) => line.effective_experts, text: (line) => `${fixed(line.effective_experts, 1)} of ${line.num_experts}` },
    { name: "Dead", note: "experts", value: (line) => line.dead_experts, text: (line) => String(line.dead_experts) },
    { name: "MaxVio", note: "max/mean − 1", value: (line) => line.max_violation, text: (line) => fixed(line.max_violation, 2), strong: true },
    { name: "Entropy", note: "of the load, 0–1", value: (line) => line.normalized_entropy, text: (line) => fixed(line.normalized_entropy, 3) },
    some("margin") && { name: "Margin", note: "median", value: (line) => line.margin, text: (line) => fixed(line.margin, 3) },
    some("nmi") && { name: "NMI", note: "with the domain", value: (line) => line.nmi, text: (line) => fixed(line.nmi, 3) },
    { name: "Hottest", note: "experts", value: (line) => line.greatest_load, text: (line) => expertList(line.hottest), left: true },
    { name: "Coldest", note: "experts", value: (line) => line.least_load, text: (line) => line.coldest.map(([expert]) => expert).join(", "), left: true },
  ].filter(Boolean);
}

function layerTable(run, choose) {
  const rows = run.table.map((line, layer) => ({ ...line, layer }));
  const head = ({ layer }) => el("th", { scope: "row" }, run.num_layers > 1
    ? el("button", { type: "button", class: "link", title: run.modules[layer], "aria-label": `Look inside layer ${layerName(run, layer)}`, onclick: () => choose.open(layer) }, layerName(run, layer))
    : layerName(run, layer));
  return card("Layers", `Choose a column to sort by it${run.num_layers > 1 ? ", a layer to look inside" : ""}. Loads are multiples of the fair share.`,
    sortableTable("Figures of every layer", layerColumns(run), rows, head));
}

// What the curves over depth show, where the trace tells it.
const depthCurves = [
  { key: "max_violation", title: "MaxVio", name: "Busiest expert / fair share − 1", kind: "number", bounds: { zero: true }, show: (value) => fixed(value, 2) },
  { key: "used", title: "Effective experts", name: "Share of the layer's experts", kind: "percent", bounds: { zero: true, ceiling: 1 }, show: percent },
  { key: "normalized_entropy", title: "Entropy of the load", name: "Entropy / log of the experts", kind: "number", bounds: { ceiling: 1 }, show: (value) => fixed(value, 3) },
  { key: "nmi", title: "Domain and expert", name: "Normalised mutual information", kind: "number", bounds: { zero: true, ceiling: 1 }, show: (value) => fixed(value, 3) },
  { key: "margin", title: "Margin of the last expert", name: "Gap of the logits, median", kind: "number", bounds: { zero: true }, show: (value) => fixed(value, 3) },
];

const layerAxis = (run) => {
  const steps = range(run.num_layers);
  const every = [1, 2, 5, 10, 20, 50, 100].find((step) => run.num_layers / step <= 12) ?? run.num_layers;
  return {
    steps, name: "Layer", dots: run.num_layers <= 32, title: (at) => `Layer ${layerName(run, at)}`,
    ticks: steps.filter((layer) => layer % every === 0), text: (tick) => layerName(run, tick),
  };
};

function overDepth(run, other) {
  if (run.num_layers < 2) return null;
  const axis = layerAxis(run);
  const known = depthCurves.filter(({ key }) => run.table.some((line) => present(depthValue(line, key))));
  const grid = el("div", { class: "charts two" });
  const of = (table, key) => table.map((line) => depthValue(line, key));
  const update = (layer) => grid.replaceChildren(...known.map(({ key, title, name, kind, bounds, show }) => {
    const values = of(run.table, key);
    const second = other && of(other.table, key);
    const shown = second?.some(present) ? second : undefined;
    return figure(title, (width) => curve(width, {
      axis, values, second: shown, name, kind, bounds, label: `${title} over the layers`, marked: layer,
      show: (at) => (shown ? [`${other.names[0]}: ${show(values[at])}`, `${other.names[1]}: ${show(shown[at])}`] : [`${title} ${show(values[at])}`]),
    }));
  }));
  const legend = other && el("ul", { class: "legend", "aria-label": "Legend" },
    el("li", {}, swatchLine("line series-0"), other.names[0]), el("li", {}, swatchLine("line series-1"), other.names[1]));
  const numbers = asTable("As a table", () => plainTable("Figures over the layers", ["Layer", ...known.map(({ title }) => title)],
    run.table.map((line, layer) => [layerName(run, layer), ...known.map(({ key, show }) => show(depthValue(line, key)))])));
  const element = card("Over the depth of the model", `From the first layer to the last.${run.num_layers > 1 ? " The upright line is the chosen layer." : ""}`, legend || null, grid, numbers);
  element.classList.add("wide");
  return { element, update };
}

const depthValue = (line, key) => (key === "used" ? line.effective_experts / line.num_experts : line[key]);

const overNames = {
  recording: { tab: "Recording", name: "Token of the recording", table: "the recording", short: (names) => (bin) => compactTick(Number(names[bin])) },
  position: { tab: "Position in the document", name: "Position from", table: "positions in the document", short: (names) => (bin) => compactTick(Number(names[bin])) },
  phase: { tab: "Prefill and decode", name: "Phase", table: "prefill and decode", short: (names) => (bin) => names[bin] },
};

function loadOverRecording(run) {
  if (!run.over) return null;
  const views = Object.fromEntries(Object.entries(run.over).map(([key, { names, words, ratio }]) => [key, {
    ...overNames[key], short: overNames[key].short(names), span: (bin) => words[bin], ratio: unpackRatios(ratio),
  }]));
  const body = el("div");
  let view = "phase" in views ? "phase" : "recording";
  let layer = 0;
  const draw = () => body.replaceChildren(...loadOver(run, views[view], layer));
  return {
    element: card("Load over the recording", "Orange is more than a fair share of the tokens, blue is less.", balanceKey(),
      Object.keys(views).length > 1 && segmented("Over", Object.entries(views).map(([key, { tab }]) => [key, tab]), view, (chosen) => { view = chosen; draw(); }), body),
    update: (chosen) => { layer = chosen; draw(); },
  };
}
