// A heat map on a canvas: quick for DeepSeek's 58 x 256 cells; read with the mouse, by touch or with the arrow keys.
function labelStep(count, size, room) {
  return [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 200, 256].find((step) => step * size >= room || step >= count);
}

function fontOf(canvas, size) {
  return `${size}px ${getComputedStyle(canvas).fontFamily}`;
}

// Where the cells are. Sizes are whole pixels on the edges, so that neither gaps nor blur appear.
function cellGrid(width, pen, spec) {
  const names = range(spec.rows).map(spec.rowLabel);
  const widest = Math.max(...names.map((name) => pen.measureText(name).width));
  const left = Math.ceil(Math.min(widest, width * 0.3) + 12);
  const cell = Math.min((width - left - 2) / spec.cols, spec.maxCell ?? Infinity);
  const row = spec.rowHeight ?? (spec.square ? Math.max(cell, 2) : Math.min(Math.max(Math.floor(400 / spec.rows), 2), 22));
  const top = 22;
  return {
    width, left, top, cell, row,
    x: (index) => Math.round(left + index * cell), y: (index) => Math.round(top + index * row),
    right: left + spec.cols * cell, bottom: top + spec.rows * row,
  };
}

function shorten(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > room) length -= 1;
  return `${text.slice(0, length)}…`;
}

function paintLabels(pen, grid, spec, colours) {
  pen.fillStyle = colours.muted;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const every = labelStep(spec.rows, grid.row, 13);
  for (const r of range(spec.rows)) {
    if (r % every === 0) pen.fillText(shorten(pen, spec.rowLabel(r), grid.left - 10), grid.left - 6, grid.top + (r + 0.5) * grid.row);
  }
  pen.textAlign = "center";
  const widest = Math.max(...range(spec.cols).map((c) => pen.measureText(spec.colLabel(c)).width));
  const step = labelStep(spec.cols, grid.cell, widest + 10);
  for (const c of range(spec.cols)) {
    if (c % step === 0 && grid.left + (c + 0.5) * grid.cell + widest / 2 <= grid.width) {
      pen.fillText(spec.colLabel(c), grid.left + (c + 0.5) * grid.cell, grid.bottom + 12);
    }
  }
  pen.fillStyle = colours.ink;
  pen.textAlign = "left";
  pen.fillText(spec.rowName, 0, 8);
  pen.textAlign = "right";
  pen.fillText(spec.colName, Math.max(grid.right, grid.left + pen.measureText(spec.colName).width), grid.bottom + 32);
}

function paintCells(pen, grid, spec) {
  const gap = grid.cell >= 7 && grid.row >= 7 ? 1 : 0;
  const roomy = grid.row >= 16 && spec.text;
  for (const r of range(spec.rows)) {
    for (const c of range(spec.cols)) {
      const rgb = spec.colour(r, c);
      if (!rgb) continue;
      const [x, y] = [grid.x(c), grid.y(r)];
      const [width, height] = [grid.x(c + 1) - x - gap, grid.y(r + 1) - y - gap];
      pen.fillStyle = css(rgb);
      pen.fillRect(x, y, Math.max(width, 1), Math.max(height, 1));
      const text = roomy && spec.text(r, c);
      if (text && pen.measureText(text).width <= width - 4) {
        pen.fillStyle = inkOn(rgb);
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.fillText(text, x + width / 2, y + height / 2 + 0.5);
      }
    }
  }
}

function heatmap(spec) {
  const canvas = el("canvas", {
    class: `heatmap${spec.pick ? " pickable" : ""}`, tabindex: 0, role: "application", "aria-roledescription": "heat map",
    "aria-label": `${spec.label}. Arrow keys read the cells${spec.pick ? ", Enter chooses a layer" : ""}.`,
  });
  const host = el("div", { class: "canvas" }, canvas);
  const at = { r: 0, c: 0, shown: false };
  const still = document.createElement("canvas"); // the cells and labels, painted once: moving the cursor copies them
  let grid = null;

  const outline = () => {
    if (!grid) return;
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(still, 0, 0);
    pen.scale(devicePixelRatio || 1, devicePixelRatio || 1);
    pen.strokeStyle = getComputedStyle(document.body).color;
    const marked = spec.marked?.();
    if (marked !== undefined) {
      pen.lineWidth = 1.5;
      pen.strokeRect(grid.x(0) - 1, grid.y(marked) - 1, grid.right - grid.left + 2, grid.y(marked + 1) - grid.y(marked) + 1);
    }
    if (at.shown) {
      pen.lineWidth = 2;
      pen.strokeRect(grid.x(at.c), grid.y(at.r), Math.max(grid.cell, 3), Math.max(grid.row, 3));
    }
  };
  const paint = () => {
    const width = host.clientWidth;
    if (!width || !spec.rows || !spec.cols) return;
    const pen = still.getContext("2d");
    pen.font = fontOf(canvas, 12);
    grid = cellGrid(width, pen, spec);
    const height = Math.ceil(grid.bottom + 42);
    const density = devicePixelRatio || 1;
    canvas.width = still.width = width * density;
    canvas.height = still.height = height * density;
    canvas.style.height = `${height}px`;
    pen.scale(density, density);
    pen.font = fontOf(canvas, 12);
    const colours = { ink: getComputedStyle(document.body).color, muted: getComputedStyle(canvas).color };
    paintCells(pen, grid, spec);
    paintLabels(pen, grid, spec, colours);
    outline();
  };
  const point = (r, c, spoken) => {
    Object.assign(at, { r, c, shown: true });
    outline();
    const box = canvas.getBoundingClientRect();
    const lines = spec.describe(r, c);
    showTooltip(lines, box.left + grid.left + (c + 0.5) * grid.cell, box.top + grid.y(r));
    if (spoken) announce(lines);
  };
  const leave = () => {
    at.shown = false;
    hideTooltip();
    outline();
  };
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - grid.left) / grid.cell);
    const r = Math.floor((event.clientY - box.top - grid.top) / grid.row);
    return r >= 0 && r < spec.rows && c >= 0 && c < spec.cols ? [r, c] : null;
  };
  const track = (event) => {
    const cell = grid && cellAt(event);
    if (cell) point(...cell, false);
    else if (at.shown) leave();
  };
  canvas.addEventListener("pointermove", track);
  canvas.addEventListener("pointerdown", track);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("focus", () => { if (grid && canvas.matches(":focus-visible")) point(at.r, at.c, true); });
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("click", (event) => {
    const cell = grid && cellAt(event);
    if (cell) spec.pick?.(...cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -spec.cols], End: [0, spec.cols], PageUp: [-spec.rows, 0], PageDown: [spec.rows, 0] };
    if ((event.key === "Enter" || event.key === " ") && spec.pick) {
      event.preventDefault();
      spec.pick(at.r, at.c);
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [down, right] = moves[event.key];
    point(clamp(at.r + down, [0, spec.rows - 1]), clamp(at.c + right, [0, spec.cols - 1]), true);
  });
  new ResizeObserver(paint).observe(host);
  repaints.set(canvas, paint);
  return Object.assign(host, { outline });
}
