// What a finished run does on held-out data: load of every layer, domains by expert, experts that work together.
const layerHeight = (layers) => (layers <= 16 ? 26 : Math.max(4, Math.min(14, Math.floor(520 / layers))));

function finalLoad(run, pickLayer, layerNow) {
  if (!run.final_load) return null;
  const ratio = unpackRatios(run.final_load);
  const [layers, experts] = ratio.shape;
  const host = heatmap({
    rows: layers, cols: experts, rowName: "Layer", colName: "Expert", rowLabel: String, colLabel: String,
    maxCell: 84, rowHeight: layerHeight(layers), label: "Load of every layer and expert on held-out data",
    colour: (layer, expert) => balanceColour(ratio.at(layer, expert)),
    text: (layer, expert) => fixed(ratio.at(layer, expert), 2),
    describe: (layer, expert) => [`Layer ${layer}, expert ${expert}`, `Load ${times(ratio.at(layer, expert))} its fair share`],
    marked: layers > 1 ? layerNow : undefined,
    pick: layers > 1 ? (layer) => pickLayer(layer) : undefined,
  });
  return {
    element: card("Load on held-out data", `Tokens of each expert as a multiple of its fair share.${layers > 1 ? " Choose a line to see that layer everywhere below." : ""}`,
      balanceKey(), host,
      asTable("As a table", () => plainTable("Load on held-out data", ["Layer", ...range(experts).map((expert) => `Expert ${expert}`)],
        range(layers).map((layer) => [String(layer), ...range(experts).map((expert) => times(ratio.at(layer, expert)))])))),
    update: repaintAll,
  };
}

function domainsByExpert(run) {
  if (!run.domains) return null;
  const ratio = unpackRatios(run.domains.ratio);
  const [, count, experts] = ratio.shape;
  const { names, values } = run.domains;
  const metric = run.result.metric;
  const body = el("div");
  const key = el("div");
  let view = "share";
  let layer = 0;
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
    const largest = Math.max(...range(count).flatMap((domain) => range(experts).map((expert) => share(domain, expert))));
    key.replaceChildren(view === "share" ? colourKey("share", ["0", percent(largest / 2, 0), percent(largest, 0)])
      : colourKey("balance", ["≤ ¼ ×", view === "lift" ? "even spread" : "as other domains", "≥ 4 ×"]));
    body.replaceChildren(
      heatmap({
        rows: count, cols: experts, rowName: "Domain", colName: "Expert", rowLabel: (domain) => names[domain], colLabel: String,
        maxCell: 84, rowHeight: count <= 24 ? 26 : 14, label: `Experts of each domain in layer ${layer}`,
        colour: (domain, expert) => colour(domain, expert, largest), text,
        describe: (domain, expert) => [
          `${names[domain]} → expert ${expert}`, `${percent(share(domain, expert))} of its assignments`,
          `${times(ratio.at(layer, domain, expert))} an even spread`, `${times(relative(domain, expert))} the mean of the domains`,
          present(values[domain]) && `${metrics[metric].name} ${metrics[metric].show(values[domain])}`,
        ].filter(Boolean),
      }),
      asTable("As a table", () => plainTable(`Share of assignments of each domain, layer ${layer}`,
        ["Domain", metrics[metric].name, ...range(experts).map((expert) => `Expert ${expert}`)],
        range(count).map((domain) => [names[domain], metrics[metric].show(values[domain]), ...range(experts).map((expert) => percent(share(domain, expert)))]))));
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
  if (!run.pairs) {
    return run.num_experts > 1 && run.result
      ? { element: card(title, null, el("p", { class: "empty" }, "No token went to two experts in this run, so there are no pairs.")) } : null;
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
  const draw = () => {
    const all = range(shown).flatMap((one) => range(one).map((other) => part(one, other)));
    const largest = Math.max(...all, 0);
    key.replaceChildren(view === "lift" ? colourKey("balance", ["≤ ¼ ×", "by chance", "≥ 4 ×"], swatch(() => channels(idle[mode()]), "never together"))
      : colourKey("share", ["0", percent(largest / 2), percent(largest)]));
    body.replaceChildren(
      heatmap({
        rows: shown, cols: shown, rowName: "Expert", colName: "Expert", rowLabel: (index) => String(name(index)), colLabel: (index) => String(name(index)),
        square: true, maxCell: shown <= 16 ? 44 : shown <= 32 ? 26 : 14, label: `Pairs of experts in layer ${layer}`,
        colour: (one, other) => (one === other ? null : view === "lift" ? balanceColour(lift(one, other)) : shareColour(part(one, other), largest)),
        text: (one, other) => (one === other ? null : view === "lift" ? fixed(lift(one, other), 2) : fixed(100 * part(one, other), 1)),
        describe: (one, other) => one === other ? [`Expert ${name(one)}`, "No pair with itself"]
          : [`Experts ${name(one)} and ${name(other)}`, `${times(lift(one, other))} as often as their loads alone would give`, `${percent(part(one, other), 2)} of all pairs`],
      }),
      asTable("As a table: the strongest pairs", () => plainTable(`Strongest pairs of layer ${layer}`, ["Pair", "× chance", "Share of all pairs"],
        range(shown).flatMap((one) => range(one).map((other) => [one, other]))
          .sort((a, b) => lift(...b) - lift(...a)).slice(0, 40)
          .map(([one, other]) => [`${name(other)} and ${name(one)}`, times(lift(one, other)), percent(part(one, other), 2)]))));
  };
  return {
    element: card(title, "Pairs of experts that serve the same token, against what their loads alone would give.",
      segmented("Scale", [["lift", "× chance"], ["share", "Share in %"]], view, (chosen) => { view = chosen; draw(); }), key, body),
    update: (chosen) => { layer = chosen; draw(); },
  };
}
