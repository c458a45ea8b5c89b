// Numbers as text: one place, so that the same quantity reads the same everywhere.
const thin = "\u2009";
const dash = "–";

function fixed(value, digits) {
  return present(value) ? value.toFixed(digits).replace("-", "−") : dash;
}

function percent(value, digits = 1) {
  return present(value) ? `${fixed(100 * value, digits)}${thin}%` : dash;
}

function times(value) {
  if (!present(value)) return dash;
  return `${value >= 100 ? fixed(value, 0) : value >= 10 ? fixed(value, 1) : fixed(value, 2)}${thin}×`;
}

function compact(value) {
  if (!present(value)) return dash;
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) {
      const scaled = value / size;
      return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)}${thin}${letter}`;
    }
  }
  return String(Math.round(value));
}

const whole = (value) => (present(value) ? Math.round(value).toLocaleString("en").replaceAll(",", thin) : dash);

const metrics = {
  accuracy: {
    name: "Accuracy", unit: "%", better: "higher is better",
    show: (value, digits = 2) => percent(value, digits),
    spread: (value) => `± ${fixed(100 * value, 2)}`,
  },
  bits_per_byte: {
    name: "Bits per byte", unit: "bits/byte", better: "lower is better",
    show: (value, digits = 3) => fixed(value, digits),
    spread: (value) => `± ${fixed(value, 3)}`,
  },
};

function withSpread(metric, value, ci95) {
  if (!present(value)) return "diverged";
  return metrics[metric].show(value) + (present(ci95) ? ` ${metrics[metric].spread(ci95)}` : "");
}

function when(text) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return text || "";
  return date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function duration(start, end) {
  const seconds = (new Date(end) - new Date(start)) / 1000;
  if (!(seconds >= 0)) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// Why a router that is not causal cannot be compared.
const sees = { text: "sees later tokens", image: "sees the rest of the batch" };

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
