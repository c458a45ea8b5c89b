// Elements. Text only ever enters the page as a text node or an attribute: no string is parsed as HTML.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

let nextId = 0;
const newId = (prefix) => `${prefix}-${nextId++}`;

function card(title, hint, ...children) {
  const id = newId("card");
  return el("section", { class: "card", "aria-labelledby": id },
    el("h3", { id }, title), hint ? el("p", { class: "hint" }, hint) : null, ...children);
}

// One of a few options; `choose` is called with the chosen one.
function segmented(label, options, chosen, choose) {
  const buttons = options.map(([value, text]) =>
    el("button", {
      type: "button", "aria-pressed": String(value === chosen),
      onclick: (event) => {
        for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        choose(value);
      },
    }, text));
  return el("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

function labelled(text, control) {
  control.id ||= newId("control");
  return el("div", { class: "field" }, el("label", { for: control.id }, text), control);
}

function choice(text, options, chosen, choose) {
  const select = el("select", { onchange: () => choose(options[select.selectedIndex][0]) },
    options.map(([value, name]) => el("option", { selected: value === chosen }, name)));
  return labelled(text, select);
}

// A chart again as numbers, built when it is opened.
function asTable(summary, build) {
  const details = el("details", { class: "numbers" }, el("summary", {}, summary));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(build());
  });
  return details;
}

function plainTable(caption, headers, rows) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, headers.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map(([first, ...cells]) =>
        el("tr", {}, el("th", { scope: "row" }, first), cells.map((text) => el("td", {}, text)))))));
}

// One stop of the tab key for a group of marks; the arrow keys go from one to the next.
function roving(container, marks) {
  marks.forEach((mark, index) => mark.setAttribute("tabindex", index ? "-1" : "0"));
  container.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const at = marks.indexOf(document.activeElement);
    if (at < 0) return;
    const ends = { Home: 0, End: marks.length - 1 };
    const next = event.key in ends ? ends[event.key] : at + (steps[event.key] ?? NaN);
    if (!(next in marks)) return;
    event.preventDefault();
    marks[at].setAttribute("tabindex", "-1");
    marks[next].setAttribute("tabindex", "0");
    marks[next].focus();
  });
}
