// A trained model run with other numbers of experts per token: what it gains and what it costs.
function topKSection() {
  const rows = report.top_k;
  if (!rows.length) return null;
  const bits = rows.every((row) => present(row.bits_per_byte));
  const quality = bits
    ? { title: "Bits per byte by K", name: "Bits per byte", value: (row) => row.bits_per_byte }
    : { title: "Loss by K", name: "Cross-entropy", value: (row) => row.loss };
  const trained = rows.findIndex((row) => row.trained);
  const axis = {
    steps: rows.map((row) => Math.log2(row.top_k)), ticks: rows.map((row) => Math.log2(row.top_k)), text: (tick) => String(Math.round(2 ** tick)),
    name: "K, experts per token", dots: true, title: (at) => `K = ${rows[at].top_k}${rows[at].trained ? ", as trained" : ""}`,
  };
  const lines = (at) => [
    present(rows[at].bits_per_byte) && `${fixed(rows[at].bits_per_byte, 4)} bits/byte`, `Loss ${fixed(rows[at].loss, 4)}`,
    `${compact(rows[at].tokens_per_second)} tokens/s`,
  ].filter(Boolean);
  const draw = (of, title, name, kind, bounds) => figure(title, (width) => curve(width, {
    axis, values: rows.map(of), name, kind, bounds, label: title, marked: trained < 0 ? undefined : trained, show: lines,
  }));
  const first = rows[Math.max(trained, 0)];
  return section("Experts per token", "top-k", card("Quality and speed by K",
    `The same weights with another number of experts per token.${trained < 0 ? "" : ` The upright line is K = ${first.top_k}, with which the model was trained.`}`,
    rows.length > 1 && el("div", { class: "charts two" },
      draw(quality.value, quality.title, quality.name, "number", {}),
      draw((row) => row.tokens_per_second, "Speed by K", "Tokens/s", "compact", { zero: true })),
    plainTable("Quality and speed by K", ["K", ...(bits ? ["Bits per byte"] : []), "Loss", "Tokens/s", "Speed"],
      rows.map((row) => [`${row.top_k}${row.trained ? " (trained)" : ""}`, ...(bits ? [fixed(row.bits_per_byte, 4)] : []), fixed(row.loss, 4),
        compact(row.tokens_per_second), times(row.tokens_per_second / first.tokens_per_second)]))));
}
