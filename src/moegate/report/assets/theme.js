// Light and dark. CSS follows by itself; canvases are painted again through `repaints`.
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const repaints = new WeakMap();
let printing = false;

const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

function repaintAll() {
  for (const element of document.querySelectorAll("canvas, .swatch")) repaints.get(element)?.();
}

function setUpTheme(button) {
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    button.setAttribute("aria-pressed", String(isDark()));
    repaintAll();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  prefersDark.addEventListener("change", show);
  for (const [name, state] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(name, () => {
      printing = state;
      repaintAll();
    });
  }
  show();
}

// Colour ramps as stops from 0 to 1. Blue and orange stay apart in every common form of colour blindness.
const ramps = {
  balance: {
    light: ["#0b4f8a", "#5d9ccb", "#f3f1ec", "#e8964a", "#a33d00"],
    dark: ["#7cc4ff", "#3473a8", "#26292e", "#b8622a", "#ffb27a"],
  },
  share: {
    light: ["#f4f3ef", "#bfd7e4", "#6ea5c6", "#24699c", "#0b3a66"],
    dark: ["#24272c", "#23486a", "#2f76ab", "#66b1e6", "#d3ecff"],
  },
};
// An expert without a single token is not just a low load: it gets a colour of its own.
const idle = { light: "#5b2a86", dark: "#c79bff" };

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

function mix(stops, position) {
  const scaled = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(scaled), stops.length - 2);
  const [from, to] = [channels(stops[low]), channels(stops[low + 1])];
  return from.map((value, index) => Math.round(value + (to[index] - value) * (scaled - low)));
}

const mode = () => (isDark() ? "dark" : "light");
const css = (rgb) => `rgb(${rgb.join(" ")})`;

// From a quarter of a fair share to four times it, on a logarithmic scale.
function balanceColour(ratio) {
  if (ratio === 0) return channels(idle[mode()]);
  return mix(ramps.balance[mode()], (Math.log2(ratio) + 2) / 4);
}

const shareColour = (share, largest) => mix(ramps.share[mode()], largest ? share / largest : 0);

function inkOn([red, green, blue]) {
  const linear = [red, green, blue].map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
}

function colourKey(ramp, labels, extra) {
  const bar = el("canvas", { width: 160, height: 10, "aria-hidden": "true" });
  const paint = () => {
    const pen = bar.getContext("2d");
    for (const x of range(160)) {
      pen.fillStyle = css(mix(ramps[ramp][mode()], x / 159));
      pen.fillRect(x, 0, 1, 10);
    }
  };
  repaints.set(bar, paint);
  paint();
  return el("div", { class: "key" },
    el("div", { class: "ramp" }, bar, el("div", { class: "ramp-labels" }, labels.map((text) => el("span", {}, text)))),
    extra);
}

function swatch(colour, text) {
  const mark = el("span", { class: "swatch", "aria-hidden": "true" });
  const paint = () => { mark.style.background = css(colour()); };
  repaints.set(mark, paint);
  paint();
  return el("span", { class: "swatch-label" }, mark, text);
}

const balanceKey = () => colourKey("balance", ["≤ ¼ ×", "fair share", "≥ 4 ×"],
  swatch(() => channels(idle[mode()]), "no token at all"));
