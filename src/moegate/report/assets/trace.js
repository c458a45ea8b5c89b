// Puts the page about a trace together: its layers in a table, another trace beside it, then one layer at a time.
const { run } = report;

function traceTiles() {
  const { tiles } = report;
  const experts = tiles.experts.length > 1 ? `${tiles.experts[0]}${thin}–${thin}${tiles.experts.at(-1)}` : tiles.experts[0];
  return tileList([
    ["Tokens", present(tiles.tokens) && compact(tiles.tokens)],
    ["Documents", present(tiles.documents) && compact(tiles.documents)],
    ["MoE layers", String(tiles.layers)],
    ["Experts a layer", present(experts) || typeof experts === "string" ? String(experts) : ""],
    ["K", present(tiles.top_k) && String(tiles.top_k)],
    ["Assignments", compact(tiles.assignments)],
    ["Dead experts", String(tiles.dead)],
  ]);
}

function overview(choose) {
  return section("Overview", "overview",
    el("div", { class: "shows" }, el("h3", {}, "What this shows"), el("ul", {}, report.findings.map((text) => el("li", {}, text)))),
    report.facts.length > 0 && el("details", { class: "about", open: true }, el("summary", {}, "What was recorded"), facts(report.facts)),
    traceTiles(), run.num_layers > 0 && layerTable(run, choose));
}

function build() {
  const state = { layer: 0, cards: [] };
  const toolbar = el("div", { class: "toolbar", role: "group", "aria-label": "Chosen layer" });
  const set = (layer) => {
    state.layer = clamp(layer, [0, run.num_layers - 1]);
    keepingFocus(toolbar, [layerStepper(run, state.layer, set)]);
    for (const { update } of state.cards) update?.(state.layer);
  };
  const choose = {
    set, now: () => state.layer,
    open: (layer) => {
      set(layer);
      document.getElementById("inside").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
      document.getElementById("layer")?.focus({ preventScroll: true });
    },
  };
  main.append(el("div", { class: "title" }, el("h1", {}, report.title),
    el("p", { class: "hint" }, `Mixture-of-experts routing · written ${when(report.generated)} by moegate ${report.version}`)));
  main.append(overview(choose));
  const other = report.comparison;
  const compared = other && comparisonOfTraces(run, other, choose);
  const perK = topKSection();
  main.append(...[compared?.element, perK].filter(Boolean));
  if (report.tiles.assignments > 0) {
    const inside = [finalLoad(run, choose), overDepth(run, other), loadOverRecording(run), domainsByExpert(run), coactivation(run), tokenView(run)].filter(Boolean);
    state.cards = [...(compared?.cards ?? []), ...inside];
    toolbar.hidden = run.num_layers < 2;
    main.append(section("Layer by layer", "inside", toolbar, el("div", { class: "cards" }, inside.map(({ element }) => element))));
    set(0);
  }
  main.append(el("footer", {}, report.trimmed.length > 0 && el("p", {}, `To keep this file small: ${report.trimmed.join("; ")}.`)));
  setUpTheme(document.getElementById("theme"));
  document.getElementById("waiting").remove();
  performance.mark("moegate-ready");
}

build();
