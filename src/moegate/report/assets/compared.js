// Two traces: where they agree, where they part, and how the loads differ.
function agreementCard(run, other) {
  if (!other.agreement) return el("p", { class: "empty" }, other.apart);
  const axis = layerAxis(run);
  const curves = [
    { title: "Experts in common", name: "Mean share of a token's experts", values: other.agreement },
    { title: "All experts the same", name: "Share of the tokens", values: other.exact },
    { title: "First layer to differ", name: "Share of the tokens", values: other.first },
    { title: "Weight that moved", name: "Mean share of a token's weight", values: other.moved },
    { title: "Margin", name: "Gap of the logits, median", values: other.margin_parted, second: other.margin_same, number: true },
  ].filter(({ values }) => values.some(present));
  const read = (values, number) => (layer) => (number ? fixed(values[layer], 4) : percent(values[layer], 2));
  const grid = el("div", { class: "charts" });
  const update = (layer) => grid.replaceChildren(...curves.map(({ title, name, values, second, number }) => figure(second ? `${title} where they part, and elsewhere` : title, (width) => curve(width, {
    axis, values, second, name, kind: number ? "number" : "percent", bounds: number ? { zero: true } : { floor: 0, ceiling: 1 },
    label: `${title}, over the layers`, marked: layer,
    show: (at) => (second ? [`Where they part: ${read(values, true)(at)}`, `Elsewhere: ${read(second, true)(at)}`] : [`${title}: ${read(values)(at)}`]),
  }))));
  const table = plainTable("Agreement of every layer", ["Layer", ...curves.flatMap(({ title, second }) => (second ? [`${title} where they part`, `${title} elsewhere`] : [title]))],
    range(run.num_layers).map((layer) => [layerName(run, layer),
      ...curves.flatMap(({ values, second, number }) => [values, second].filter(Boolean).map((list) => read(list, number)(layer)))]));
  const numbers = run.num_layers > 1 ? asTable("As a table", () => table) : table;
  const element = card("Where they agree", `${whole(other.tokens)} tokens that both traces saw. A token parts in the first layer that sends it to other experts.${other.margin_parted.some(present) ? " The margin is the gap between the last logit that was taken and the first that was not." : ""}`,
    other.margin_parted.some(present) ? el("ul", { class: "legend", "aria-label": "Legend of the margin" },
      el("li", {}, swatchLine("line series-0"), "margin where they part"), el("li", {}, swatchLine("line series-1"), "margin elsewhere")) : null,
    run.num_layers > 1 ? grid : null, numbers);
  return { element, update: run.num_layers > 1 ? update : () => {} };
}

function partingTokens(run, other) {
  if (!other.parting?.length) return null;
  const margins = other.parting.some(({ margin }) => present(margin));
  const columns = [
    { name: "Token", value: (row) => row.row, text: (row) => row.text },
    { name: "Row", value: (row) => row.row, text: (row) => whole(row.row) },
    { name: "Layers", note: "that differ", value: (row) => row.layers, text: (row) => `${row.layers} of ${run.num_layers}` },
    { name: "In common", note: "experts", value: (row) => row.agreement, text: (row) => percent(row.agreement) },
    { name: "First", note: "layer to differ", value: (row) => row.layer, text: (row) => layerName(run, row.layer) },
    margins && { name: "Margin", note: "there", value: (row) => row.margin, text: (row) => fixed(row.margin, 4) },
    { name: "Only in", note: other.names[0], value: (row) => row.here.join(), text: (row) => row.here.join(", ") || dash, left: true },
    { name: "Only in", note: other.names[1], value: (row) => row.there.join(), text: (row) => row.there.join(", ") || dash, left: true },
  ].filter(Boolean);
  const head = (row) => el("th", { scope: "row" }, el("code", {}, visible(row.text) || "·"));
  return card("Tokens that part", other.parting.length < other.parted
    ? `The ${whole(other.parting.length)} of ${whole(other.parted)} tokens that differ in most layers.` : `All ${whole(other.parted)} of them, the most different first.`,
    sortableTable("Tokens that part", columns, other.parting, head));
}

function loadDifference(run, other, choose) {
  const here = unpackRatios(run.final_load);
  const there = unpackRatios(other.load);
  const change = (layer, expert) => {
    const [before, after] = [here.at(layer, expert), there.at(layer, expert)];
    return before ? after / before : after ? Infinity : 1;
  };
  const { parts, update } = layerMap(run, {
    label: "Difference of the loads of every layer and expert", value: change, by: "change",
    colour: (value) => (value === 0 ? channels(idle[mode()]) : balanceColour(value)),
    text: (value) => (value === Infinity ? "new" : fixed(value, 2)), show: (value) => (value === Infinity ? "new" : times(value)),
    lines: (layer, expert) => [`${other.names[0]}: ${times(here.at(layer, expert))} its fair share`, `${other.names[1]}: ${times(there.at(layer, expert))}`],
  }, choose);
  return {
    element: card("Difference of the loads", `The load of ${other.names[1]} as a multiple of that of ${other.names[0]}.${chooseHint(run.num_layers)}`,
      colourKey("balance", ["≤ ¼ ×", "the same", "≥ 4 ×"], swatch(() => channels(idle[mode()]), `not used in ${other.names[1]}`)), parts),
    update,
  };
}

function comparisonOfTraces(run, other, choose) {
  const agreement = agreementCard(run, other);
  const difference = loadDifference(run, other, choose);
  return {
    element: section("Comparison", "comparison", facts([[other.names[0], other.titles[0]], [other.names[1], other.titles[1]]]),
      agreement.element ?? agreement, partingTokens(run, other), difference.element),
    cards: [agreement, difference],
  };
}
