// What a finished run does on held-out data: load of every layer, domains by expert, experts that work together.
// Experts of one layer: fewer than the widest layer has where a model mixes widths.
const expertsOf = (run, layer) => run.layer_experts?.[layer] ?? run.num_experts;

// The experts of a layer from the most to the least loaded, sorted when first asked for.
function rankedExperts(run, value) {
  const lines = new Map();
  return (layer) => {
    if (!lines.has(layer)) lines.set(layer, range(expertsOf(run, layer)).sort((one, other) => value(layer, other) - value(layer, one)));
    return lines.get(layer);
  };
}

// Layers by experts. `value(layer, expert)` is a cell, `show` its number, `lines` its tooltip; `choose` takes a layer.
function layerMap(run, { label, value, colour, text, show, lines, by = "load" }, choose) {
  const layers = run.num_layers;
  const ranked = rankedExperts(run, value);
  const body = el("div");
  const draw = (sorted) => {
    const expertAt = (layer, column) => (sorted ? ranked(layer)[column] : column < expertsOf(run, layer) ? column : undefined);
    const cell = (layer, column, read, missing) => {
      const expert = expertAt(layer, column);
      return expert === undefined ? missing : read(expert);
    };
    body.replaceChildren(
      heatmap({
        rows: layers, cols: run.num_experts, rowName: "Layer", colName: sorted ? `Expert, by its ${by} in the layer` : "Expert",
        rowLabel: (layer) => layerName(run, layer), colLabel: (column) => (sorted ? `${column + 1}.` : String(column)),
        maxCell: 84, rowHeight: layers <= 16 ? 26 : Math.max(4, Math.min(14, Math.floor(520 / layers))), label,
        colour: (layer, column) => cell(layer, column, (expert) => colour(value(layer, expert)), null),
        text: (layer, column) => cell(layer, column, (expert) => text(value(layer, expert)), null),
        describe: (layer, column) => cell(layer, column,
          (expert) => [`Layer ${layerName(run, layer)}, expert ${expert}`, ...lines(layer, expert)],
          [`Layer ${layerName(run, layer)}`, `It has ${plural(expertsOf(run, layer), "expert")}.`]),
        marked: layers > 1 ? choose.now : undefined,
        pick: layers > 1 ? (layer) => choose.set(layer) : undefined,
      }),
      asTable("As a table", () => plainTable(label,
        ["Layer", ...range(run.num_experts).map((column) => (sorted ? `${column + 1}.` : `Expert ${column}`))],
        range(layers).map((layer) => [layerName(run, layer), ...range(run.num_experts).map((column) =>
          cell(layer, column, (expert) => show(value(layer, expert)) + (sorted ? ` (${expert})` : ""), ""))]))));
  };
  draw(false);
  const order = run.num_experts > 2 && segmented("Order of the experts", [[false, "By number"], [true, `By ${by}`]], false, draw);
  return { parts: [order, body], update: () => body.firstChild.outline() };
}

const chooseHint = (layers) => (layers > 1 ? " Choose a line to see that layer everywhere below." : "");

function finalLoad(run, choose) {
  if (!run.final_load) return null;
  const ratio = unpackRatios(run.final_load);
  const what = run.result ? "Load on held-out data" : "Load of every layer and expert";
  const { parts, update } = layerMap(run, {
    label: run.result ? "Load of every layer and expert on held-out data" : what, value: (layer, expert) => ratio.at(layer, expert),
    colour: balanceColour, text: (value) => fixed(value, 2), show: times,
    lines: (layer, expert) => [`Load ${times(ratio.at(layer, expert))} its fair share`],
  }, choose);
  return {
    element: card(what, `Tokens of each expert as a multiple of its fair share.${chooseHint(run.num_layers)}`, balanceKey(), parts),
    update,
  };
}

// The load of each expert of a layer over something: `name` is its axis, `short` and `span` say what a bin is.
function loadOver(run, { ratio, name, short, span, table: tableName }, layer) {
  const [bins] = ratio.shape;
  const experts = expertsOf(run, layer);
  // Few bins lie flat, so that their lines can be compared.
  const flat = bins <= 4;
  const along = { name: "Expert", count: experts, text: String };
  const over = { name, count: bins, text: short };
  const [down, across] = flat ? [over, along] : [along, over];
  const cell = (read) => (row, column) => (flat ? read(column, row) : read(row, column));
  return [
    heatmap({
      rows: down.count, cols: across.count, rowName: down.name, colName: across.name, rowLabel: down.text, colLabel: across.text,
      label: `Load of each expert of layer ${layerName(run, layer)} over ${tableName}`, maxCell: flat ? 84 : undefined, rowHeight: flat ? 26 : undefined,
      colour: cell((expert, bin) => balanceColour(ratio.at(bin, layer, expert))),
      text: flat ? cell((expert, bin) => fixed(ratio.at(bin, layer, expert), 2)) : undefined,
      describe: cell((expert, bin) => [`Expert ${expert}`, span(bin), `Load ${times(ratio.at(bin, layer, expert))} its fair share`]),
    }),
    flat ? asTable("As a table", () => plainTable(`Load over ${tableName}, layer ${layerName(run, layer)}`, ["Expert", ...range(bins).map(span)],
      range(experts).map((expert) => [String(expert), ...range(bins).map((bin) => times(ratio.at(bin, layer, expert)))])))
      : asTable("As a table: the last column", () => plainTable(`${span(bins - 1)}, layer ${layerName(run, layer)}`, ["Expert", "Load / fair share"],
        range(experts).map((expert) => [String(expert), times(ratio.at(bins - 1, layer, expert))]))),
  ];
}

function domainsByExpert(run) {
  if (!run.domains) return null;
  const ratio = unpackRatios(run.domains.ratio);
  const [, count] = ratio.shape;
  const { names, values } = run.domains;
  // The result of each domain, where the tokens were also scored.
  const metric = run.result && metrics[run.result.metric];
  const body = el("div");
  const key = el("div");
  let view = "share";
  let layer = 0;
  let experts = 0;
  const share = (domain, expert) => ratio.at(layer, domain, expert) / experts;
  const typical = (expert) => range(count).reduce((sum, domain) => sum + ratio.at(layer, domain, expert), 0) / count;
  const relative = (domain, expert) => (typical(expert) ? ratio.at(layer, domain, expert) / typical(expert) : 0);
  const views = {
    share: { text: (d, e) => fixed(100 * share(d, e), 0), colour: (d, e, largest) => shareColour(share(d, e), largest) },
    lift: { text: (d, e) => fixed(ratio.at(layer, d, e), 2), colour: (d, e) => balanceColour(ratio.at(layer, d, e)) },
    relative: { text: (d, e) => fixed(relative(d, e), 2), colour: (d, e) => balanceColour(relative(d, e)) },
  };
  const draw = () => {
    const { text, colour } = views[view];
    experts = expertsOf(run, layer);
    const largest = Math.max(...range(count).flatMap((domain) => range(experts).map((expert) => share(domain, expert))));
    key.replaceChildren(view === "share" ? colourKey("share", ["0", percent(largest / 2, 0), percent(largest, 0)])
      : colourKey("balance", ["≤ ¼ ×", view === "lift" ? "even spread" : "as other domains", "≥ 4 ×"]));
    body.replaceChildren(
      heatmap({
        rows: count, cols: experts, rowName: "Domain", colName: "Expert", rowLabel: (domain) => names[domain], colLabel: String,
        maxCell: 84, rowHeight: count <= 24 ? 26 : 14, label: `Experts of each domain in layer ${layerName(run, layer)}`,
        colour: (domain, expert) => colour(domain, expert, largest), text,
        describe: (domain, expert) => [
          `${names[domain]} → expert ${expert}`, `${percent(share(domain, expert))} of its assignments`,
          `${times(ratio.at(layer, domain, expert))} an even spread`, `${times(relative(domain, expert))} the mean of the domains`,
          metric && present(values[domain]) && `${metric.name} ${metric.show(values[domain])}`,
        ].filter(Boolean),
      }),
      asTable("As a table", () => plainTable(`Share of assignments of each domain, layer ${layerName(run, layer)}`,
        ["Domain", ...(metric ? [metric.name] : []), ...range(experts).map((expert) => `Expert ${expert}`)],
        range(count).map((domain) => [names[domain], ...(metric ? [metric.show(values[domain])] : []), ...range(experts).map((expert) => percent(share(domain, expert)))]))));
  };
  return {
    element: card("Domains and experts", "Where the tokens of each domain go. A line adds up to 100 %.",
      segmented("Scale", [["share", "Share in %"], ["lift", "× even spread"], ["relative", "× other domains"]], view,
        (chosen) => { view = chosen; draw(); }), key, body),
    update: (chosen) => { layer = chosen; draw(); },
  };
}

function coactivation(run) {
  const title = "Experts that work together";
  if (run.pairs === undefined) return null;
  if (run.pairs === null) {
    return run.num_experts > 1
      ? { element: card(title, null, el("p", { class: "empty" }, "No token went to two experts, so there are no pairs.")) } : null;
  }
  const { shown, experts } = run.pairs;
  const share = unpackRatios(run.pairs.share);
  const chance = unpackLevels(run.pairs.chance);
  const pairs = run.num_experts * (run.num_experts - 1);
  const body = el("div");
  const key = el("div");
  let view = "lift";
  let layer = 0;
  const name = (index) => (experts ? experts[layer][index] : index);
  // Position of a pair in the upper triangle, written row by row.
  const position = (one, other) => {
    const [low, high] = one < other ? [one, other] : [other, one];
    return (low * (2 * shown - low - 1)) / 2 + (high - low - 1);
  };
  const ratio = (one, other) => share.at(layer, position(one, other));
  const part = (one, other) => (2 * ratio(one, other)) / pairs;
  const lift = (one, other) => {
    const expected = chance.at(layer, one) * chance.at(layer, other);
    return expected ? ratio(one, other) / expected : 0;
  };
  const strongest = () => run.pairs.strongest?.[layer]
    ?? range(shown).flatMap((one) => range(one).map((other) => [name(other), name(one), lift(one, other), part(one, other)]))
      .sort((a, b) => b[2] - a[2]).slice(0, 40);
  const draw = () => {
    const all = range(shown).flatMap((one) => range(one).map((other) => part(one, other)));
    const largest = Math.max(...all, 0);
    key.replaceChildren(view === "lift" ? colourKey("balance", ["≤ ¼ ×", "by chance", "≥ 4 ×"], swatch(() => channels(idle[mode()]), "never together"))
      : colourKey("share", ["0", percent(largest / 2), percent(largest)]));
    body.replaceChildren(
      heatmap({
        rows: shown, cols: shown, rowName: "Expert", colName: "Expert", rowLabel: (index) => String(name(index)), colLabel: (index) => String(name(index)),
        square: true, maxCell: shown <= 16 ? 44 : shown <= 32 ? 26 : 14, label: `Pairs of experts in layer ${layerName(run, layer)}`,
        colour: (one, other) => (one === other ? null : view === "lift" ? balanceColour(lift(one, other)) : shareColour(part(one, other), largest)),
        text: (one, other) => (one === other ? null : view === "lift" ? fixed(lift(one, other), 2) : fixed(100 * part(one, other), 1)),
        describe: (one, other) => one === other ? [`Expert ${name(one)}`, "No pair with itself"]
          : [`Experts ${name(one)} and ${name(other)}`, `${times(lift(one, other))} as often as their loads alone would give`, `${percent(part(one, other), 2)} of all pairs`],
      }),
      asTable("As a table: the strongest pairs", () => plainTable(`Strongest pairs of layer ${layerName(run, layer)}`, ["Pair", "× chance", "Share of all pairs"],
        strongest().map(([one, other, multiple, of]) => [`${one} and ${other}`, times(multiple), percent(of, 2)]))));
  };
  return {
    element: card(title, "Pairs of experts that serve the same token, against what their loads alone would give.",
      segmented("Scale", [["lift", "× chance"], ["share", "Share in %"]], view, (chosen) => { view = chosen; draw(); }), key, body),
    update: (chosen) => { layer = chosen; draw(); },
  };
}
