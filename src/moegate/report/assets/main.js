// Puts the page together: the sweeps, then the inside of one run at a time.
function sweepFacts(sweep) {
  const axes = Object.entries(sweep.axes).map(([name, values]) => `${name}: ${Array.isArray(values) ? values.join(", ") : values}`);
  const took = sweep.ended ? ` · took ${duration(sweep.started, sweep.ended)}` : "";
  return el("details", { class: "about", open: true }, el("summary", {}, "What was run"), facts([
    ["Task", sweep.kind === "image" ? "Image classification" : "Language modelling"],
    ["Runs", `${plural(sweep.num_runs, "run")}${sweep.finished ? "" : ", not finished"}`],
    ["Compared", axes.join(" · ")],
    ["Command", sweep.command && el("code", {}, sweep.command)],
    ["When", sweep.started && `${when(sweep.started)}${took}`],
    ["Machine and software", sweep.software],
    ["Left out", sweep.skipped.join(" ")],
    ["Rules", sweep.rules.length > 0 && el("ul", { class: "rules" }, sweep.rules.map(({ router, words }) => el("li", {}, el("b", {}, router), ` ${words}`)))],
  ]));
}

function sweepSection(sweep, number, pickRun) {
  const chooseRow = (row) => {
    const index = report.runs.findIndex((run) => run.sweep === number && JSON.stringify(run.key) === JSON.stringify(row.key));
    return index < 0 ? null : () => pickRun(index);
  };
  return section(report.sweeps.length > 1 ? sweep.name : "Results", newId("sweep"),
    el("div", { class: "shows" }, el("h3", {}, "What this shows"),
      sweep.findings.length ? el("ul", {}, sweep.findings.map((text) => el("li", {}, text)))
        : el("p", {}, "No run has finished yet; what has been logged so far is below.")),
    sweepFacts(sweep),
    sweep.metric ? comparison(sweep, chooseRow) : null);
}

function tiles(run) {
  const { result } = run;
  const known = result ? [
    [metrics[result.metric].name, present(result.value) ? metrics[result.metric].show(result.value) : "diverged"],
    ["Training, tokens/s", present(result.tokens_per_second) && compact(result.tokens_per_second)],
    ["Inference, tokens/s", present(result.inference_tokens_per_second) && compact(result.inference_tokens_per_second)],
    ["Utilisation", present(result.utilization) && percent(result.utilization)],
    ["MaxVio", present(result.max_violation) && fixed(result.max_violation, 2)],
    ["Dropped", present(result.drop_rate) && percent(result.drop_rate)],
  ] : [];
  return tileList([...known, ["Parameters", compact(run.parameters)], ["Active parameters", compact(run.active_parameters)]]);
}

function runHead(run) {
  const last = run.curves.step.at(-1);
  const progress = run.finished ? "finished" : `not finished${present(last) ? `: step ${whole(last)}${run.steps ? ` of ${whole(run.steps)}` : ""}` : ""}`;
  return el("div", { class: "run-head" },
    el("p", { class: "run-name" }, el("b", {}, run.label), run.name !== run.label && ` ${run.name}`,
      el("span", { class: `pill ${run.finished ? "good" : "warn"}` }, progress),
      !run.comparable && el("span", { class: "pill warn" }, `not comparable: ${sees[run.kind]}`)),
    run.rule && el("p", { class: "rule" }, run.rule),
    el("p", { class: "hint" }, run.num_layers ? `${plural(run.num_layers, "layer")} of ${plural(run.num_experts, "expert")}` : "No routed layers",
      run.started && ` · started ${when(run.started)}`, run.software && ` · ${run.software}`),
    tiles(run));
}

// The run to open with: of the best configuration whose router has a choice to make.
function mostTelling() {
  const sign = report.sweeps[0].lower_is_better ? 1 : -1;
  const candidates = report.runs.map((run, index) => ({ run, index }))
    .filter(({ run }) => run.sweep === 0 && run.result && run.comparable && run.key[3] === null)
    .sort((one, other) => (one.run.top_k >= one.run.num_experts) - (other.run.top_k >= other.run.num_experts)
      || sign * ((one.run.result.value ?? NaN) - (other.run.result.value ?? NaN)) || one.index - other.index);
  return candidates[0]?.index ?? 0;
}

function insideSection() {
  const state = { run: 0, layer: 0, cards: [] };
  const head = el("div");
  const cards = el("div", { class: "cards" });
  const toolbar = el("div", { class: "toolbar", role: "group", "aria-label": "Run and layer" });
  const setLayer = (layer) => {
    const { num_layers: layers } = report.runs[state.run];
    state.layer = Math.min(Math.max(layer, 0), Math.max(layers - 1, 0));
    drawToolbar();
    for (const { update } of state.cards) update?.(state.layer);
  };
  const setRun = (index) => {
    state.run = index;
    const run = report.runs[index];
    head.replaceChildren(runHead(run));
    state.cards = [
      finalLoad(run, { set: setLayer, now: () => state.layer }), loadOverTraining(run), trainingCurves(run), domainsByExpert(run), coactivation(run), tokenView(run),
    ].filter(Boolean);
    cards.classList.toggle("paired", run.num_experts <= 16);
    cards.replaceChildren(...state.cards.map(({ element }) => element));
    if (!run.result) cards.append(card("On held-out data", null, el("p", { class: "empty" }, "This run has not been evaluated yet.")));
    setLayer(state.layer);
  };
  const names = report.runs.map((run, index) => [index,
    `${report.sweeps.length > 1 ? `${report.sweeps[run.sweep].name}: ` : ""}${run.label}${run.finished ? "" : " (not finished)"}`]);
  const drawToolbar = () => {
    const runField = choice("Run", names, state.run, setRun);
    runField.lastChild.id = runField.firstChild.htmlFor = "run";
    keepingFocus(toolbar, [report.runs.length > 1 && runField, layerStepper(report.runs[state.run], state.layer, setLayer)]);
    toolbar.hidden = !toolbar.childElementCount;
  };
  const element = section("Inside a run", "inside", toolbar, head, cards);
  setRun(mostTelling());
  const pickRun = (index) => {
    setRun(index);
    element.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    document.getElementById("run")?.focus({ preventScroll: true });
  };
  return { element, pickRun };
}

function build() {
  const first = report.sweeps[0];
  main.append(el("div", { class: "title" }, el("h1", {}, report.title),
    el("p", { class: "hint" }, `Mixture-of-experts routing · written ${when(report.generated)} by moegate ${report.version}`)));
  let pickRun = () => {};
  main.append(...report.sweeps.map((sweep, number) => sweepSection(sweep, number, (index) => pickRun(index))));
  if (report.runs.length) {
    const inside = insideSection();
    pickRun = inside.pickRun;
    main.append(inside.element);
  }
  main.append(el("footer", {}, report.trimmed.length > 0 && el("p", {}, `To keep this file small: ${report.trimmed.join("; ")}.`),
    el("p", {}, first.software)));
  setUpTheme(document.getElementById("theme"));
  document.getElementById("waiting").remove();
}

build();
