"use strict";
// The page: an overview that sorts and filters, figures, one cell in detail, two cells side by side.
// All state that is worth a link stands in the address: #cell=ID, #compare=ID,ID.

const DATA = JSON.parse(document.getElementById("data").textContent);
const CELLS = new Map(DATA.cells.map((cell) => [cell.id, cell]));
const METRICS = new Map(DATA.metrics.map((metric) => [metric.key, metric]));
const state = { sort: null, down: false, words: "", axes: {}, pooled: false, cell: null, pair: [], layer: null };

/** An HTML element; properties by name, children are elements or text. */
function html(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
const card = (title, ...children) => html("div", { className: "card" }, title ? html("h3", { textContent: title }) : null, ...children);
const wide = (element) => { element.classList.add("full"); return element; };

// Numbers -------------------------------------------------------------------------------------------------------------------

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

/** A difference: coloured where its interval does not hold zero. */
function difference(metric, interval) {
  if (!interval) return html("span", { className: "dull", textContent: "-" });
  const [value, low, high] = interval, clear = low > 0 || high < 0, worse = value > 0 !== metric.higher;
  const span = html("span", { textContent: (value >= 0 ? "+" : "") + written(metric, value), className: clear ? (worse ? "up" : "down") : "dull" });
  span.append(html("span", { className: "pm", textContent: ` [${written(metric, low)}, ${written(metric, high)}]` }));
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

// Overview ------------------------------------------------------------------------------------------------------------------

const several = (texts) => new Set(texts).size > 1;
const AXES = ["model", "method", "quant", "quantizer", "calib", "seed"].filter((axis) => several(DATA.cells.map((cell) => String(cell.axes[axis]))));
/** Whether the method alone does not tell the quantizer: only then is that a column of its own. */
const MIXED = DATA.cells.some((cell) => several(DATA.cells.filter((other) => other.axes.method === cell.axes.method).map((other) => other.axes.quantizer)));

function columns() {
  const shown = [{ key: "name", title: state.pooled ? "method" : "cell", text: true, value: (row) => row.name, show: (row) => nameOf(row) }];
  for (const axis of AXES)
    if (axis !== "method" && (axis !== "quantizer" || MIXED) && !(state.pooled && axis === "seed"))
      shown.push({ key: `axis:${axis}`, title: axis, text: true, value: (row) => row.axes[axis], show: (row) => html("span", { textContent: row.axes[axis] }) });
  if (state.pooled) shown.push({ key: "seeds", title: "seeds", value: (row) => row.cells.length, show: (row) => html("span", { textContent: row.cells.length }) });
  for (const metric of DATA.metrics) {
    if (!DATA.cells.some((cell) => cell.numbers[metric.key])) continue;
    if (metric.overview) shown.push({ key: metric.key, title: metric.title, value: (row) => row.numbers[metric.key]?.[0], show: (row) => number(metric, row.numbers[metric.key]) });
    if (metric.key === "fid" && DATA.baseline)
      shown.push({ key: "difference", title: `FID − ${DATA.baseline}`, value: (row) => row.differences.fid?.[0], show: (row) => difference(metric, row.differences.fid) });
  }
  shown.push({ key: "seconds", title: "time", value: (row) => row.seconds, show: (row) => html("span", { textContent: duration(row.seconds) }) });
  return shown;
}

function nameOf(row) {
  const name = html("span", {}, html("i", { className: "swatch", style: `background:${row.colour}` }), row.name);
  return row.status === "failed" ? html("span", {}, name, html("span", { className: "failed", textContent: " failed" })) : name;
}

function duration(seconds) {
  if (!finite(seconds)) return "-";
  return seconds < 60 ? `${seconds.toFixed(0)} s` : seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function rowsShown() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = (state.pooled ? DATA.lines : DATA.cells).filter((row) => {
    const text = [row.name, row.id, row.status, ...Object.values(row.axes)].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && Object.entries(state.axes).every(([axis, value]) => !value || String(row.axes[axis]) === value);
  });
  const column = columns().find((one) => one.key === state.sort);
  if (!column) return rows;
  const rank = (a, b) => {
    const [x, y] = [column.value(a), column.value(b)], [noX, noY] = [x === undefined || x === null, y === undefined || y === null];
    if (noX || noY) return noX - noY; // what has no number stands last in either direction
    return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (state.down ? -1 : 1);
  };
  return [...rows].sort(rank);
}

function overview() {
  const section = byId("overview"), search = html("input", { type: "search", placeholder: "filter: words that a row must hold", value: state.words, id: "filter" });
  search.addEventListener("input", () => { state.words = search.value; table(); });
  const bar = html("div", { className: "bar" }, search);
  for (const axis of AXES) {
    const values = [...new Set(DATA.cells.map((cell) => String(cell.axes[axis])))];
    const select = html("select", { name: axis }, html("option", { value: "", textContent: `every ${axis}` }), ...values.map((value) => html("option", { value, textContent: value })));
    select.addEventListener("change", () => { state.axes[axis] = select.value; table(); });
    bar.append(select);
  }
  if (DATA.lines.some((line) => line.cells.length > 1)) {
    const button = html("button", { textContent: "pool seeds", id: "pool", ariaPressed: String(state.pooled) });
    button.addEventListener("click", () => { state.pooled = !state.pooled; button.ariaPressed = String(state.pooled); table(); });
    bar.append(button);
  }
  bar.append(html("span", { className: "count", id: "count" }));
  section.replaceChildren(html("h2", { textContent: "Overview" }), bar, html("div", { className: "card scroll" }, html("table", { id: "table" })),
    html("p", { className: "foot", textContent: DATA.notes.slice(1).join(". ") + ". Click a row for all of it; tick two to compare them." }));
  table();
}

function table() {
  const shown = columns(), rows = rowsShown(), all = state.pooled ? DATA.lines : DATA.cells;
  const head = html("tr", {}, html("th", { title: "compare" }), ...shown.map(heading));
  const body = rows.map((row) => {
    const line = html("tr", { className: "row" }, html("td", {}, ticker(row)), ...shown.map((column) => html("td", { className: column.text ? "text" : "" }, column.show(row))));
    line.dataset.id = row.id;
    if (row.id === state.cell) line.classList.add("open");
    line.addEventListener("click", () => open(state.pooled ? row.cells[0] : row.id));
    return line;
  });
  byId("table").replaceChildren(html("thead", {}, head), html("tbody", {}, ...body));
  byId("count").textContent = rows.length === all.length ? `${all.length} rows` : `${rows.length} of ${all.length} rows`;
}

function heading(column) {
  const arrow = state.sort === column.key ? (state.down ? " ↓" : " ↑") : "";
  const cell = html("th", { className: `sortable${column.text ? " text" : ""}`, textContent: column.title + arrow });
  cell.dataset.key = column.key;
  cell.addEventListener("click", () => {
    [state.sort, state.down] = [column.key, state.sort === column.key && !state.down];
    table();
  });
  return cell;
}

function ticker(row) {
  const id = state.pooled ? row.cells[0] : row.id, box = html("input", { type: "checkbox", checked: state.pair.includes(id), ariaLabel: `compare ${row.name}` });
  box.addEventListener("click", (event) => event.stopPropagation());
  box.addEventListener("change", () => {
    state.pair = box.checked ? [...state.pair, id].slice(-2) : state.pair.filter((other) => other !== id);
    table();
    if (state.pair.length === 2) location.hash = `compare=${state.pair.join(",")}`;
    compare();
  });
  return box;
}

const open = (id) => { location.hash = `cell=${id}`; };

// Figures -------------------------------------------------------------------------------------------------------------------

function figures() {
  const section = byId("figures"), grid = html("div", { className: "grid" });
  section.replaceChildren(html("h2", { textContent: "Figures" }), grid);
  const lines = DATA.lines.slice(0, 60);
  for (const key of ["fid", "noise_error"]) {
    const metric = METRICS.get(key), rows = lines.filter((line) => line.numbers[key]).map((line) => whisker(metric, line));
    const values = rows.map((row) => row.value), log = Math.max(...values) > 30 * Math.min(...values) && Math.min(...values) > 0;
    if (rows.length) grid.append(card(`${metric.title}, with 95 % intervals`, whiskers(rows, { label: log ? "logarithmic" : "", log, open })));
  }
  for (const [key, label] of [["size_stored_mb", "stored MB"], ["gbops", "10⁹ bit operations (MACs × weight bits × input bits)"]]) front(grid, lines, key, label);
  curveCards(grid, lines.map((line) => ({ name: line.name, colour: line.colour, cell: CELLS.get(line.cells[0]) })));
  sampleCard(grid, lines.map((line) => ({ name: line.name, cell: CELLS.get(line.cells[0]) })).slice(0, 24));
  insides(grid);
}

function whisker(metric, line) {
  const [value, low, high] = line.numbers[metric.key].map((end) => (finite(end) ? end * metric.factor : end));
  const spread = finite(low) ? ` ± ${written(metric, (line.numbers[metric.key][2] - line.numbers[metric.key][1]) / 2)}` : "";
  return { name: titled(line), value, low, high, colour: line.colour, target: line.cells[0], text: written(metric, line.numbers[metric.key][0]) + spread };
}

/** A line's name with its bit-widths, where those vary. */
const titled = (line) => (AXES.includes("quant") && line.axes.quant !== "full" && !line.name.toLowerCase().includes(line.axes.quant) ? `${line.name} ${line.axes.quant}` : line.name);

/** FID against a cost, with the line of what nothing beats in both. */
function front(grid, lines, key, label) {
  const known = lines.filter((line) => line.numbers[key] && line.numbers.fid);
  if (known.length < 2) return;
  const points = known.map((line) => [line.numbers[key][0], line.numbers.fid[0], `${titled(line)}: FID ${written(METRICS.get("fid"), line.numbers.fid[0])}`, line.cells[0], line.numbers.fid[1], line.numbers.fid[2]]);
  const best = points.filter((point) => !points.some((other) => other !== point && other[0] <= point[0] && other[1] <= point[1] && (other[0] < point[0] || other[1] < point[1])));
  best.sort((a, b) => a[0] - b[0]);
  const stairs = best.flatMap((point, index) => (index ? [[point[0], best[index - 1][1]], point] : [point])).map(([x, y]) => [x, y]);
  const series = [{ points: stairs, colour: "var(--soft)", dots: false, dash: "4 4" }, ...known.map((line, index) => ({ points: [points[index]], colour: line.colour, line: false, radius: 4.6 }))];
  const values = points.map((point) => point[1]), log = Math.max(...values) > 10 * Math.min(...values);
  const costs = points.map((point) => point[0]);
  const chart = plot(series, { x: { label, log: Math.max(...costs) > 20 * Math.min(...costs) }, y: { label: "FID", log }, open });
  grid.append(card(`FID against ${label.replace(/ \(.*/, "")}`, chart, html("p", { className: "foot", textContent: "Dashed: the Pareto front. Point at a dot for its name." })));
}

function legend(entries) {
  return html("div", { className: "legend" }, ...entries.map((entry) => html("span", {}, html("i", { style: `background:${entry.colour}` }), entry.name)));
}

const CURVES = [
  ["teacher_forced", "Error of each step alone", "|ε_q − ε|² / |ε|²"],
  ["free_running", "Error accumulated on the quantized network's own walk", "|x_q − x|² / |x|²"],
];

function curveCards(grid, entries) {
  const drawn = entries.filter((entry) => entry.cell?.curves).slice(0, 16);
  if (!drawn.length) return;
  for (const [key, title, label] of CURVES) {
    const series = drawn.map((entry) => ({
      name: entry.name,
      colour: entry.colour,
      points: entry.cell.curves.timestep.map((t, step) => [t, entry.cell.curves[key][step], `${entry.name}, t = ${t}: ${brief(entry.cell.curves[key][step] ?? NaN)}`, entry.cell.id]),
    }));
    const chart = plot(series, { x: { label: "timestep t (the sampler walks from left to right)", reverse: true }, y: { label, log: true }, open });
    grid.append(card(title, chart, legend(drawn)));
  }
}

function sampleCard(grid, entries) {
  const drawn = entries.filter((entry) => entry.cell?.samples);
  if (!drawn.length) return;
  const rows = drawn.map((entry) => html("div", { className: "samplerow" }, html("span", { textContent: entry.name }), picture(entry.cell)));
  grid.append(wide(card("Samples: a column, the same noise", ...rows)));
}

const picture = (cell) => html("img", { className: "samples", src: cell.samples, alt: `samples of ${cell.name}` });

/** What the full-precision network's layers read: the two observations that quantizing diffusion models rests on. */
function insides(grid) {
  const found = Object.values(DATA.activations)[0];
  if (!found) return;
  const names = Object.keys(found.ranges);
  const spans = names.map((name) => found.ranges[name].low.map((low, step) => found.ranges[name].high[step] - low));
  const shares = spans.map((span) => span.map((value) => value / Math.max(...span)));
  const moving = names.map((name, index) => [Math.min(...shares[index]), name]).sort((a, b) => a[0] - b[0])[0][1];
  const holder = html("div"), show = (name) => holder.replaceChildren(rangeChart(found, name));
  const titles = (y, x) => `${names[y]}, t = ${found.timestep[x]}: ${brief(found.ranges[names[y]].low[x])} to ${brief(found.ranges[names[y]].high[x])}`;
  show(state.layer ?? moving);
  grid.append(wide(card("Activation ranges over the timesteps, each layer against its own widest", heat(names, found.timestep, shares, titles, { label: "timestep t", pick: (row) => show(names[row]) }), html("p", { className: "foot", textContent: "Input of every layer in execution order, full precision. Dark: as wide as it gets. A calibration at one timestep sees one column. Click a row to draw that layer." }))));
  grid.append(card("One layer's range", holder));
  const shortcuts = Object.entries(found.shortcuts).sort((a, b) => apart(b[1]) - apart(a[1]));
  if (shortcuts.length) grid.append(shortcutCard(shortcuts));
}

/** How many times wider one part of a concatenation is than the other. */
function apart(shortcut) {
  const spans = shortcut.parts.map((part) => part.range[1] - part.range[0]);
  return Math.max(...spans) / Math.min(...spans);
}

function rangeChart(found, name) {
  const { low, high } = found.ranges[name], points = (values) => found.timestep.map((t, step) => [t, values[step]]);
  const series = [{ points: points(high), area: points(low), colour: "var(--c0)" }, { points: points(low), colour: "var(--c0)" }];
  return html("div", {}, html("p", { className: "dull", textContent: name }), plot(series, { x: { label: "timestep t", reverse: true }, y: { label: "input" } }));
}

/** The concatenations one by one, the most uneven first. */
function shortcutCard(shortcuts) {
  const holder = html("div"), select = html("select", {}, ...shortcuts.map(([name, one], index) => html("option", { value: index, textContent: `${name} (ranges ${brief(apart(one))} : 1)` })));
  const show = () => holder.replaceChildren(...histograms(shortcuts[select.value][1]));
  select.addEventListener("change", show);
  show();
  return card("What the shortcuts read, deep and skip part", select, holder);
}

/** Histograms of the parts of a concatenation, and how many levels each has with one scale and with one of its own. */
function histograms(shortcut) {
  const width = (shortcut.high - shortcut.low) / shortcut.parts[0].counts.length, names = ["deep", "skip"];
  const label = (index) => (shortcut.parts.length === 2 ? names[index] : `part ${index + 1}`);
  const series = shortcut.parts.map((part, index) => ({
    name: label(index),
    colour: colour(index),
    dots: false,
    points: part.counts.map((count, bin) => [shortcut.low + (bin + 0.5) * width, count / part.counts.reduce((sum, value) => sum + value, 0) || NaN]),
  }));
  const whole = Math.max(...shortcut.parts.map((part) => part.range[1])) - Math.min(...shortcut.parts.map((part) => part.range[0]));
  const levels = shortcut.parts.map((part, index) => `${label(index)} ${Math.round((256 * (part.range[1] - part.range[0])) / whole)}`);
  const text = `Levels of 256 that a part's range spans when both share a scale: ${levels.join(", ")}. Split: 256 each.`;
  return [plot(series, { x: { label: "input" }, y: { label: "share of values", log: true } }), legend(series), html("p", { className: "foot", textContent: text })];
}

// One cell ------------------------------------------------------------------------------------------------------------------

function detail() {
  const section = byId("cell"), cell = CELLS.get(state.cell);
  if (!cell) {
    section.replaceChildren(html("h2", { textContent: "Cell" }), html("p", { className: "dull", textContent: "Click a row or a point." }));
    return;
  }
  const grid = html("div", { className: "grid" });
  section.replaceChildren(html("h2", { textContent: `Cell ${cell.name}` }), grid);
  if (cell.error) grid.append(wide(card(`Failed in ${cell.error.stage}: ${cell.error.type}`, html("pre", { textContent: cell.error.traceback || cell.error.message }))));
  const times = Object.fromEntries(Object.entries(cell.costs).map(([stage, seconds]) => [stage, duration(seconds)]));
  const beside = html("div", { className: "stack" }, card("Provenance", facts(cell.provenance)), card("Time of its stages", facts(times)));
  grid.append(card("Numbers", numbersTable(cell)), beside);
  if (cell.samples) grid.append(wide(card("Samples", picture(cell))));
  curveCards(grid, [{ name: cell.name, colour: cell.colour, cell }]);
  if (cell.layers) layerCards(grid, cell);
  if (cell.conformance) grid.append(wide(conformanceCard(cell)));
  grid.append(wide(card(null, folded("Config", facts(cell.options)))), wide(card(null, folded("Protocol and keys", facts(cell.protocol)))), wide(card(null, folded("Log: what was computed for this cell, and when", html("pre", { textContent: cell.log || "no line in executions.jsonl" })))));
}

const folded = (title, content) => html("details", { open: title === "Config" }, html("summary", { textContent: title }), content);

function facts(entries) {
  return html("dl", {}, ...Object.entries(entries).flatMap(([name, value]) => [html("dt", { textContent: name }), html("dd", { textContent: value === null ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value) })]));
}

function numbersTable(cell) {
  const rows = DATA.metrics.filter((metric) => cell.numbers[metric.key]).map((metric) =>
    html("tr", {}, html("td", { className: "text", textContent: metric.title }), html("td", {}, number(metric, cell.numbers[metric.key])), html("td", {}, cell.differences[metric.key] ? difference(metric, cell.differences[metric.key]) : "")));
  for (const [name, value] of Object.entries(cell.others)) rows.push(html("tr", {}, html("td", { className: "text", textContent: name }), html("td", { textContent: brief(value) }), html("td")));
  return html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, html("th"), html("th", { textContent: "value" }), html("th", { textContent: DATA.baseline ? `− ${DATA.baseline}` : "" }))), html("tbody", {}, ...rows)));
}

function layerCards(grid, cell) {
  const draw = (key, title, label) => {
    const points = cell.layers.map((layer, index) => [index, layer[key], `${layer.name} W${layer.weight_bits}A${layer.act_bits}: ${brief(layer[key])}`]);
    return card(title, plot([{ points, colour: cell.colour, line: false }], { x: { label: "layer, in execution order", ticks: false }, y: { label, log: true } }));
  };
  grid.append(draw("error", "Error of each layer's output", "|y_q − y|² / |y|²"), draw("sensitivity", "What each layer alone does to the noise estimate", "|ε_q − ε|² / |ε|²"));
  const worst = [...cell.layers].sort((a, b) => b.sensitivity - a.sensitivity).slice(0, 8);
  const rows = worst.map((layer) => html("tr", {}, html("td", { className: "text", textContent: layer.name }), html("td", { textContent: `W${layer.weight_bits}A${layer.act_bits}` }), html("td", { textContent: brief(layer.error) }), html("td", { textContent: brief(layer.sensitivity) })));
  grid.append(wide(card("The most sensitive layers", html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...["layer", "bits", "its error", "error of ε"].map((title, index) => html("th", { textContent: title, className: index ? "" : "text" })))), html("tbody", {}, ...rows))))));
}

function conformanceCard(cell) {
  const rows = cell.conformance.map((line) => html("tr", {}, ...line.map((text, index) => html("td", { textContent: text, className: index ? "text" : "text dull" }))));
  return card("Against the paper", html("div", { className: "scroll" }, html("table", { className: "wrap" }, html("tbody", {}, ...rows))));
}

// Two cells -----------------------------------------------------------------------------------------------------------------

function compare() {
  const section = byId("compare"), pair = state.pair.map((id) => CELLS.get(id)).filter(Boolean), grid = html("div", { className: "grid" });
  const choose = html("div", { className: "bar" }, ...[0, 1].map((place) => chooser(place)));
  section.replaceChildren(html("h2", { textContent: "Compare" }), choose, grid);
  if (pair.length < 2) return;
  const [one, other] = pair;
  grid.append(wide(card("Numbers", comparedNumbers(one, other), html("p", { className: "foot", textContent: "Difference: second less first, 95 % interval on the same noise where both were measured sample by sample; coloured where it does not hold zero." }))));
  grid.append(wide(card("What differs in their configs", configDifference(one, other))));
  curveCards(grid, pair.map((cell, index) => ({ name: `${"AB"[index]}: ${cell.name}`, colour: colour(index), cell })));
  sampleCard(grid, pair.map((cell, index) => ({ name: `${"AB"[index]}: ${cell.name}`, cell })));
}

function chooser(place) {
  const select = html("select", { id: `pick${place}` }, html("option", { value: "", textContent: `cell ${"AB"[place]}` }), ...DATA.cells.map((cell) => html("option", { value: cell.id, textContent: cell.name, selected: state.pair[place] === cell.id })));
  select.addEventListener("change", () => {
    const pair = [byId("pick0").value, byId("pick1").value];
    if (pair.every(Boolean)) location.hash = `compare=${pair.join(",")}`;
  });
  return select;
}

function comparedNumbers(one, other) {
  const rows = DATA.metrics.filter((metric) => one.numbers[metric.key] || other.numbers[metric.key]).map((metric) => {
    const apart = paired(other, one, metric.key);
    return html("tr", {}, html("td", { className: "text", textContent: metric.title }), html("td", {}, number(metric, one.numbers[metric.key])), html("td", {}, number(metric, other.numbers[metric.key])), html("td", {}, apart ? difference(metric, apart) : ""));
  });
  const head = ["", `A: ${one.name}`, `B: ${other.name}`, "B − A"].map((title) => html("th", { textContent: title }));
  return html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows)));
}

function configDifference(one, other) {
  const names = [...new Set([...Object.keys(one.options), ...Object.keys(other.options)])];
  const differing = names.filter((name) => JSON.stringify(one.options[name]) !== JSON.stringify(other.options[name]));
  if (!differing.length) return html("p", { className: "dull", textContent: "Nothing: the same config." });
  const text = (value) => (value === undefined ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const rows = differing.map((name) => html("tr", {}, ...[name, text(one.options[name]), text(other.options[name])].map((value) => html("td", { className: "text", textContent: value }))));
  return html("div", { className: "scroll" }, html("table", { className: "differs", id: "differs" }, html("thead", {}, html("tr", {}, ...["option", "A", "B"].map((title) => html("th", { className: "text", textContent: title })))), html("tbody", {}, ...rows)));
}

// The page ------------------------------------------------------------------------------------------------------------------

function notices() {
  const said = [...DATA.gaps];
  if (DATA.missing.length) said.unshift(`${DATA.missing.length} of ${DATA.missing.length + DATA.cells.length} cells have no record yet: ${DATA.missing.slice(0, 12).join(", ")}${DATA.missing.length > 12 ? ", …" : ""}`);
  const failed = DATA.cells.filter((cell) => cell.status === "failed");
  if (failed.length) said.unshift(`${failed.length} cells failed: ${failed.map((cell) => cell.name).join(", ")}`);
  byId("notices").replaceChildren(...said.map((text) => html("p", { className: "notice", textContent: text })));
}

function route() {
  const [what, ids] = decodeURIComponent(location.hash.slice(1)).split("=");
  if (what === "cell" && CELLS.has(ids)) state.cell = ids;
  if (what === "compare" && ids) state.pair = ids.split(",").filter((id) => CELLS.has(id)).slice(0, 2);
  table();
  detail();
  compare();
  if (ids) byId(what)?.scrollIntoView();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
}

function start() {
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  byId("title").textContent = DATA.title;
  byId("protocol").textContent = DATA.protocol;
  DATA.lines.forEach((line, index) => {
    line.colour = colour(index);
    for (const id of line.cells) CELLS.get(id).colour = line.colour;
  });
  for (const cell of DATA.cells) cell.colour ??= "var(--soft)";
  notices();
  overview();
  figures();
  addEventListener("hashchange", route);
  route();
}

start();
