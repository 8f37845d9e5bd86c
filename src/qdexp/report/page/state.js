// The page: an overview that sorts and filters, figures, one cell in detail, two cells side by side.
// All state that is worth a link stands in the address: #cell=ID, #compare=ID,ID.

const DATA = JSON.parse(document.getElementById("data").textContent);
DATA.cells = rowsOf(DATA.cells);
DATA.lines = linesOf(DATA.lines);
const CELLS = new Map(DATA.cells.map((cell) => [cell.id, cell]));
const state = { sort: null, down: false, words: "", axes: {}, pooled: false, drawn: 0, cell: null, pair: [] };

/** The rows of a table that comes in columns; `plain`: columns of these as they are, the others as qdexp.report.page.columns. */
function rowsOf({ status, verdict, calibrated, axes, numbers, differences, ...plain }) {
  const coded = ({ of, at }, row) => of[at ? at[row] : 0];
  const interval = ({ value, half }, row) => {
    const middle = value[row], apart = half?.[row] ?? null;
    return middle === null ? undefined : [middle, apart === null ? null : middle - apart, apart === null ? null : middle + apart];
  };
  const each = (table, read, row) => Object.fromEntries(Object.entries(table).map(([name, column]) => [name, read(column, row)]));
  return plain.name.map((_, row) => ({
    ...each(plain, (column) => column[row]),
    ...each({ status, verdict, calibrated }, coded, row),
    axes: each(axes, coded, row),
    numbers: each(numbers, interval, row),
    differences: each(differences, interval, row),
  }));
}

/** Lines: that of one cell is that cell, those of several have rows of their own. */
function linesOf({ cells, ...table }) {
  const pooled = rowsOf(table).values();
  return cells.map((own, line) => ({
    ...(own.length > 1 ? pooled.next().value : DATA.cells[own[0]]),
    id: `line-${line}`,
    cells: own.map((cell) => DATA.cells[cell].id),
  }));
}

/** An HTML element; properties by name, children are elements or text. */
function html(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
/** A box with a title, which its charts are called too. */
function card(title, ...children) {
  for (const child of title ? children : []) if (child.tagName === "svg") child.setAttribute("aria-label", title);
  return html("div", { className: "card" }, title ? html("h3", { textContent: title }) : null, ...children);
}
const wide = (element) => { element.classList.add("full"); return element; };

/** A value in its metric's unit and digits, as the tables write it. */
function written(metric, value) {
  if (!finite(value)) return "-";
  const scaled = value * metric.factor;
  if (!metric.significant || scaled === 0) return scaled.toFixed(metric.digits);
  const power = Math.floor(Math.log10(Math.abs(scaled)));
  return scaled.toFixed(Math.max(0, Math.min(20, metric.digits - 1 - power)));
}

function number(metric, interval) {
  if (!interval) return html("span", { className: "dull", textContent: "-" });
  const [value, low, high] = interval, text = html("span", { textContent: written(metric, value) });
  if (finite(low)) text.append(html("span", { className: "pm", textContent: ` ± ${written(metric, (high - low) / 2)}` }));
  return text;
}

/** A difference: coloured where its interval, if it has one, does not hold zero, and holds all that moves it (`verdict`). */
function difference(metric, interval, verdict) {
  if (!interval) return html("span", { className: "dull", textContent: "-" });
  const [value, low, high] = interval, clear = low > 0 || high < 0, worse = value > 0 !== metric.higher;
  const span = html("span", { textContent: (value >= 0 ? "+" : "") + written(metric, value), className: !clear ? "dull" : !verdict ? "" : worse ? "up" : "down" });
  if (finite(low)) span.append(html("span", { className: "pm", textContent: ` [${written(metric, low)}, ${written(metric, high)}]` }));
  return span;
}

/** The paired difference of two cells on the same noise, from their jackknife replicates. */
function paired(one, other, key) {
  const a = one.replicates[key], b = other.replicates[key];
  if (!a || !b || a.length !== b.length) return null;
  const apart = a.map((value, group) => value - b[group]), mean = apart.reduce((sum, value) => sum + value, 0) / apart.length;
  const spread = ((apart.length - 1) / apart.length) * apart.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const value = one.numbers[key][0] - other.numbers[key][0], half = DATA.quantiles[apart.length] * Math.sqrt(spread);
  return [value, value - half, value + half];
}

/** What the columns hold that are no metrics. */
const MEANINGS = {
  cell: "One point of the sweep: model, format, quantizer, calibration, protocol and seed.",
  model: "The network, its weights and its noise schedule.",
  method: "A named recipe: quantizer and calibration strategy together.",
  quant: "The grids that are computed with: bits of weights and activations.",
  quantizer: "How ranges and rounding are found.",
  calib: "From which timesteps the calibration samples come.",
  seed: "What calibration is drawn with; the noise of the images is the same for every seed.",
  seeds: "How many are pooled in the row.",
  time: "Of the mean cell of the row, all stages, from an empty store.",
  floor: "What real images score against other real images at this number of images: no difference below it means anything.",
};

/** What a metric is, and which direction is the better one. */
const meaning = (metric) => [metric.meaning, metric.kind === "floor" ? "" : metric.higher ? "More is better." : "Less is better."].filter(Boolean).join(" ");
