// Tables that sort by any column, and the summary of a sweep as one.
const tallTable = 40;

// The spread has a place of its own, so that the means stand in line.
function meanAndSpread(metric, row, anySpread) {
  if (!present(row.mean)) return "diverged";
  return [metrics[metric].show(row.mean), anySpread && el("span", { class: "spread" }, present(row.ci95) ? ` ${metrics[metric].spread(row.ci95)}` : "")];
}

function columnsOf(sweep) {
  const metric = metrics[sweep.metric];
  const anySpread = sweep.rows.some((row) => present(row.ci95));
  return [
    { name: "Router", value: (row) => row.label, text: (row) => row.router, left: true },
    { name: "K", value: (row) => row.top_k, text: (row) => (row.top_k === null ? dash : String(row.top_k)) },
    { name: "Balance", value: (row) => row.balance, text: (row) => row.balance, left: true },
    { name: metric.name, note: "mean ± 95 % CI", value: (row) => row.mean, text: (row) => meanAndSpread(sweep.metric, row, anySpread), strong: true },
    { name: "Training", note: "tokens/s", value: (row) => row.tokens_per_second, text: (row) => compact(row.tokens_per_second) },
    { name: "Inference", note: "tokens/s", value: (row) => row.inference_tokens_per_second, text: (row) => compact(row.inference_tokens_per_second) },
    { name: "Utilisation", note: "effective experts", value: (row) => row.utilization, text: (row) => percent(row.utilization) },
    { name: "MaxVio", note: "max/mean − 1", value: (row) => row.max_violation, text: (row) => fixed(row.max_violation, 2) },
    { name: "Dropped", note: "assignments", value: (row) => row.drop_rate, text: (row) => percent(row.drop_rate) },
    { name: "Parameters", note: "active / all", value: (row) => row.active_parameters, text: (row) => `${compact(row.active_parameters)} / ${compact(row.parameters)}` },
    { name: "Seeds", value: (row) => row.seeds, text: (row) => String(row.seeds) },
  ];
}

function compare(one, other) {
  if (one === null || one === undefined) return 1;
  if (other === null || other === undefined) return -1;
  return typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other;
}

function nameCell(row, choose) {
  const name = row.control === "dense" ? "dense" : row.router;
  return el("th", { scope: "row" },
    choose ? el("button", { type: "button", class: "link", "aria-label": `Look inside ${row.label}`, onclick: choose }, name) : name,
    row.control && el("span", { class: "pill" }, row.control === "dense" ? "same active size" : "frozen gate"),
    !row.comparable && el("span", { class: "pill warn" }, "not comparable"),
    row.mean === null && el("span", { class: "pill warn" }, "diverged"));
}

// Rows that sort by any column. The first column is the head of its row: `head` gives its cell.
function sortableTable(label, columns, rows, head) {
  const body = el("tbody");
  const sorted = { column: -1, down: false };
  const show = () => {
    const { column, down } = sorted;
    const ordered = [...rows];
    if (column >= 0) {
      const { value } = columns[column];
      ordered.sort((one, other) => {
        const missing = [one, other].some((row) => value(row) === null || value(row) === undefined);
        return compare(value(one), value(other)) * (down && !missing ? -1 : 1);
      });
    }
    body.replaceChildren(...ordered.map((row) =>
      el("tr", { class: row.comparable === false ? "aside" : null }, head(row),
        columns.slice(1).map(({ text, left, strong }) => el("td", { class: [left && "left", strong && "strong"].filter(Boolean).join(" ") }, text(row))))));
  };
  const headers = columns.map(({ name, note, left }, index) =>
    el("th", { scope: "col", class: left ? "left" : null },
      el("button", {
        type: "button", class: "sort",
        onclick: () => {
          sorted.down = sorted.column === index ? !sorted.down : false;
          sorted.column = index;
          headers.forEach((header, at) => {
            if (at === index) header.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
            else header.removeAttribute("aria-sort");
          });
          show();
        },
      }, name), note && el("span", { class: "note" }, note)));
  show();
  return el("div", { class: `scroll${rows.length > tallTable ? " tall" : ""}`, tabindex: 0, role: "region", "aria-label": label },
    el("table", { class: "summary" }, el("caption", { class: "unseen" }, label), el("thead", {}, el("tr", {}, headers)), body));
}

function summaryTable(sweep, rows, choose) {
  if (!rows.length) return [el("p", { class: "empty" }, "No finished configuration to show.")];
  const notes = [
    rows.some((row) => !row.comparable) && `Not comparable: the router ${sees[sweep.kind]}.`,
    rows.some((row) => row.control) && "Same active size and frozen gate: yardsticks, not routers to choose from.",
  ].filter(Boolean);
  return [sortableTable(`Summary of ${sweep.name}`, columnsOf(sweep), rows, (row) => nameCell(row, choose(row))),
    notes.length > 0 && el("p", { class: "hint below" }, notes.join(" "))];
}
