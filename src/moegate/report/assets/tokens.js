// A text with each token in the colour of its expert; pictures stand in groups, one an expert.
const coloursOfExperts = 8;
const ordinals = ["strongest", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th"];

// Whitespace and control characters that a reader would otherwise not see.
function visible(token) {
  return token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u0000-\u001f\u007f]/g, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

// A byte that belongs to the character before it shows nothing of its own.
const shownToken = (token) => (visible(token).trim() ? visible(token) : visible(token).replaceAll(" ", "␣") || "rest of a character");

const slotName = (slot, weights) => (weights ? `${slot ? ordinals[slot] ?? `${slot + 1}th` : "strongest"} of a token` : `slot ${slot} of a token`);

const parting = (count) => (count ? `${plural(count, "expert")} not shared with the other trace` : "The same experts as in the other trace");

function tokenView(run) {
  if (!run.views?.length) return null;
  const repeats = run.num_experts > coloursOfExperts;
  const state = { view: 0, slot: 0, layer: 0, marked: null, numbers: repeats };
  const body = el("div");
  const chips = el("div", { class: "experts", role: "group", "aria-label": "Highlight an expert" });
  const controls = el("div", { class: "fields" });
  const note = el("p", { class: "hint" });
  let open = null;

  const select = () => {
    const view = run.views[state.view];
    const experts = unpackExperts(view.experts);
    open = {
      view, experts, weights: view.weights && unpackWeights(view.weights, experts.shape), text: report.texts[view.text],
      differs: view.differs && unpackExperts(view.differs),
    };
    state.slot = Math.min(state.slot, experts.shape[2] - 1);
    controls.replaceChildren(...[
      choice("Text", run.views.map((one, index) => [index, viewName(run, index)]), state.view, (index) => { state.view = index; select(); draw(); }),
      choice("Expert shown", range(experts.shape[2]).map((slot) => [slot, slotName(slot, open.weights)]),
        state.slot, (slot) => { state.slot = slot; draw(); }),
      open.text.pictures.length ? null : el("button", {
        type: "button", class: "chip", "aria-pressed": String(state.numbers),
        onclick: (event) => {
          state.numbers = !state.numbers;
          event.currentTarget.setAttribute("aria-pressed", String(state.numbers));
          draw();
        },
      }, "Expert numbers"),
    ].filter(Boolean));
    note.textContent = view.slots > experts.shape[2] ? `The ${experts.shape[2]} ${open.weights ? "strongest" : "first"} of ${view.slots} experts of a token are kept here.` : "";
  };
  const expertOf = (token) => open.experts.at(state.layer, token, state.slot);
  const lines = (token) => {
    const [, , slots] = open.experts.shape;
    const used = range(slots).filter((slot) => open.experts.at(state.layer, token, slot) >= 0);
    return [
      `“${shownToken(open.text.tokens[token])}”, ${open.text.pictures.length ? "picture" : "token"} ${token}`,
      ...used.map((slot) => `Expert ${open.experts.at(state.layer, token, slot)}${open.weights ? `, weight ${fixed(open.weights.at(state.layer, token, slot), 3)}` : ""}`),
      ...(used.length ? [] : ["No expert: dropped or masked"]),
      ...(open.differs ? [parting(open.differs.at(state.layer, token))] : []),
    ];
  };
  const draw = () => {
    const counts = new Map();
    for (const token of range(open.text.tokens.length)) counts.set(expertOf(token), (counts.get(expertOf(token)) ?? 0) + 1);
    if (!counts.has(state.marked)) state.marked = null;
    const experts = [...counts.keys()].sort((one, other) => one - other);
    chips.replaceChildren(...experts.map((expert) => expertChip(expert, counts.get(expert), state, draw)));
    body.replaceChildren(open.text.pictures.length
      ? pictureGroups(open.text, experts, expertOf, lines, state) : flowingText(open, expertOf, lines, state));
  };
  select();
  const element = card(report.texts[run.views[0].text].pictures.length ? "Pictures by expert" : "A text, token by token",
    `The colour is the expert.${repeats ? " Colours repeat after eight: the number says which." : ""} Choose an expert to highlight what it gets.`,
    controls, note, chips, body);
  element.classList.add("wide");
  return { element, update: (layer) => { state.layer = layer; draw(); } };
}

// The domain, numbered where it has several texts.
function viewName(run, index) {
  const domains = run.views.map((view) => report.texts[view.text].domain || "text");
  const same = (name) => name === domains[index];
  return domains[index] + (domains.filter(same).length > 1 ? ` ${domains.slice(0, index + 1).filter(same).length}` : "");
}

const expertClass = (expert) => (expert < 0 ? "nobody" : `expert-${expert % coloursOfExperts}`);

function expertChip(expert, count, state, draw) {
  const chip = el("button", {
    type: "button", class: `chip expert ${expertClass(expert)}`, "aria-pressed": String(state.marked === expert),
    "aria-label": `Highlight ${expert < 0 ? "tokens without an expert" : `expert ${expert}`}, ${plural(count, "token")}`,
    onclick: () => {
      state.marked = state.marked === expert ? null : expert;
      draw();
      document.getElementById(chip.id)?.focus();
    },
  }, el("b", {}, expert < 0 ? "none" : String(expert)), ` ${count}`);
  chip.id = `expert-${expert}`;
  return chip;
}

function tokenMark(content, token, expert, lines, state, name) {
  const mark = el("span", { class: `${name} ${expertClass(expert)}`, "data-mark": true, role: "img" }, content);
  if (state.marked !== null) mark.classList.add(state.marked === expert ? "marked" : "dimmed");
  explain(mark, () => lines(token));
  return mark;
}

function flowingText({ text, differs }, expertOf, lines, state) {
  const host = el("div", { class: "text", role: "group", "aria-label": `Text ${text.domain}: arrow keys go from token to token` });
  const marks = text.tokens.map((token, index) => {
    const expert = expertOf(index);
    // One number for a stretch of tokens of one expert, at its end.
    const numbered = state.numbers && (index + 1 === text.tokens.length || expertOf(index + 1) !== expert);
    const name = differs?.at(state.layer, index) > 0 ? "token parts" : "token";
    return tokenMark([visible(token) || "·", numbered && el("sub", {}, expert < 0 ? "–" : String(expert))], index, expert, lines, state, name);
  });
  marks.forEach((mark, index) => host.append(mark, ...(text.tokens[index].includes("\n") ? [el("br")] : [])));
  roving(host, marks);
  return host;
}

function pictureGroups(text, experts, expertOf, lines, state) {
  const host = el("div", { class: "pictures", role: "group", "aria-label": "Pictures by expert: arrow keys go from picture to picture" });
  const marks = [];
  for (const expert of experts) {
    const members = range(text.tokens.length).filter((token) => expertOf(token) === expert);
    const group = members.map((token) =>
      tokenMark(el("img", { src: `data:image/png;base64,${text.pictures[token]}`, alt: "", width: 32, height: 32 }), token, expert, lines, state, "picture"));
    marks.push(...group);
    const head = el("div", { class: `group-head ${expertClass(expert)}` }, el("b", {}, expert < 0 ? "No expert" : `Expert ${expert}`), ` ${plural(members.length, "picture")}`);
    host.append(el("div", { class: "group" }, head, el("div", { class: "group-body" }, group)));
  }
  roving(host, marks);
  return host;
}
