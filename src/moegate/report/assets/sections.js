// The parts of a page that reports share: sections with their links, facts, tiles, the choice of a layer.
const main = document.getElementById("main");
const sections = document.getElementById("sections");

function section(title, id, ...children) {
  sections.append(el("li", {}, el("a", { href: `#${id}` }, title)));
  const heading = newId("heading");
  return el("section", { id, class: "part", "aria-labelledby": heading }, el("h2", { id: heading }, title), ...children);
}

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function tileList(pairs) {
  return el("dl", { class: "tiles" }, pairs.filter(([, value]) => value).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

const layerName = (run, layer) => run.layers?.[layer] ?? String(layer);

// Chooses a layer: from the list, or one on and one back. Nothing where there is one layer only.
function layerStepper(run, layer, setLayer) {
  if (run.num_layers < 2) return null;
  const step = (text, label, by) => el("button", {
    type: "button", class: "button", id: `layer${by}`, "aria-label": label,
    "aria-disabled": String(layer + by < 0 || layer + by >= run.num_layers), onclick: () => setLayer(layer + by),
  }, text);
  const field = choice("Layer", range(run.num_layers).map((index) => [index, layerName(run, index)]), layer, setLayer);
  field.lastChild.id = field.firstChild.htmlFor = "layer";
  return el("div", { class: "stepper" }, field, step("‹", "Layer before", -1), step("›", "Next layer", 1));
}

// Draws a group of controls again; the one that had the focus keeps it.
function keepingFocus(group, controls) {
  const focused = document.activeElement?.id;
  group.replaceChildren(...controls.filter(Boolean));
  if (focused && group.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused).focus();
}
