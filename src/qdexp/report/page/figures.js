// What is drawn of a study, and of single cells.

/** Lines of a plot that can still be told apart. */
const MOST = 16;

function figures() {
  const section = byId("figures"), grid = html("div", { className: "grid" });
  section.replaceChildren(html("h2", { textContent: "Figures" }), grid);
  const lines = DATA.lines.slice(0, 60), close = lines.slice(0, DATA.figured).map((line) => ({ ...line, cell: CELLS.get(line.cells[0]) }));
  if (lines.length < DATA.lines.length) section.append(html("p", { className: "foot", textContent: `Of the first ${lines.length} of ${DATA.lines.length} rows.` }));
  const bars = DATA.metrics.filter((metric) => metric.shown.includes("bars"));
  for (const metric of bars) {
    const rows = lines.filter((line) => line.numbers[metric.key]).map((line) => whisker(metric, line));
    const values = rows.map((row) => row.value), log = Math.max(...values) > 30 * Math.min(...values) && Math.min(...values) > 0;
    if (rows.length) grid.append(card(metric.title + (rows.some((row) => finite(row.low)) ? ", with 95 % intervals" : ""), whiskers(rows, { label: log ? "logarithmic" : "", log, open })));
  }
  const costs = DATA.metrics.filter((metric) => DATA.costs.includes(metric.key));
  for (const metric of bars.filter((one) => one.kind === "quality")) for (const cost of costs) front(grid, lines, cost, metric);
  if (!ready(close.map((entry) => entry.cell), section, figures)) return;
  curveCards(grid, close);
  sampleCard(grid, close);
  for (const found of Object.values(DATA.activations)) insides(grid, found);
}

function whisker(metric, line) {
  const [value, low, high] = line.numbers[metric.key].map((end) => (finite(end) ? end * metric.factor : end));
  const spread = finite(low) ? ` ± ${written(metric, (line.numbers[metric.key][2] - line.numbers[metric.key][1]) / 2)}` : "";
  return { name: titled(line), value, low, high, colour: line.colour, target: line.cells[0], text: written(metric, line.numbers[metric.key][0]) + spread };
}

/** A line's name with its bit-widths, where those vary. */
const titled = (line) => (AXES.includes("quant") && line.axes.quant !== "full" && !line.name.toLowerCase().includes(line.axes.quant) ? `${line.name} ${line.axes.quant}` : line.name);

/** A quality against a cost, with the line of what nothing beats in both. */
function front(grid, lines, cost, metric) {
  const known = lines.filter((line) => line.numbers[cost.key] && line.numbers[metric.key]), worse = metric.higher ? -1 : 1;
  if (known.length < 2) return;
  const scaled = (line) => line.numbers[metric.key].map((end) => (finite(end) ? end * metric.factor : end));
  const points = known.map((line) => [line.numbers[cost.key][0] * cost.factor, scaled(line)[0], `${titled(line)}: ${metric.title} ${written(metric, line.numbers[metric.key][0])}`, line.cells[0], scaled(line)[1], scaled(line)[2]]);
  const best = points.filter((point) => !points.some((other) => other !== point && other[0] <= point[0] && worse * (other[1] - point[1]) <= 0 && (other[0] < point[0] || other[1] !== point[1])));
  best.sort((a, b) => a[0] - b[0]);
  const stairs = best.flatMap((point, index) => (index ? [[point[0], best[index - 1][1]], point] : [point])).map(([x, y]) => [x, y]);
  const pareto = { name: "Pareto front", points: stairs, colour: "var(--soft)", dots: false, dash: "2 3" };
  const series = [pareto, ...known.map((line, index) => ({ points: [points[index]], colour: line.colour, hollow: line.hollow, line: false, radius: 4.6 }))];
  const values = points.map((point) => point[1]), log = Math.min(...values) > 0 && Math.max(...values) > 10 * Math.min(...values);
  const costs = points.map((point) => point[0]);
  const chart = plot(series, { x: { label: cost.axis || cost.title, log: Math.max(...costs) > 20 * Math.min(...costs) }, y: { label: metric.title, log }, open });
  grid.append(card(`${metric.title} against ${cost.title}`, chart, legend([...(known.length > MOST ? [] : known.map((line) => ({ ...line, name: titled(line), line: false }))), pareto])));
}

/** Entries are shown as they are drawn: lines that are dashed or not, dots that are hollow or not. */
function legend(entries) {
  const line = (entry) => html("i", { style: `border-top: 3px ${entry.dash ? "dashed" : "solid"} ${entry.colour}` });
  const dot = (entry) => html("i", { className: "dot", style: `border-color: ${entry.colour}; background: ${entry.hollow ? "none" : entry.colour}` });
  const swatch = (entry) => (entry.line === false ? dot(entry) : line(entry));
  return html("div", { className: "legend" }, ...entries.map((entry) => html("span", {}, swatch(entry), entry.name)));
}

const CURVES = [
  ["teacher_forced", "Error of each step alone", "|ε_q − ε|² / |ε|²"],
  ["free_running", "Error accumulated on the quantized network's own trajectory", "|x_q − x|² / |x|²"],
];

function curveCards(grid, entries) {
  const drawn = entries.filter((entry) => entry.cell?.curves).slice(0, MOST);
  if (!drawn.length) return;
  for (const [key, title, label] of CURVES) {
    const series = drawn.map((entry) => ({
      colour: entry.colour,
      dash: entry.dash,
      hollow: entry.hollow,
      points: entry.cell.curves.timestep.map((t, step) => [t, entry.cell.curves[key][step], `${entry.name}, t = ${t}: ${brief(entry.cell.curves[key][step] ?? NaN)}`, entry.cell.id]),
    }));
    const steps = drawn[0].cell.curves.timestep;
    const apart = steps.includes(0) ? "; the noise error leaves out t = 0" : "";
    const chart = plot(series, { x: { label: "timestep t", reverse: true, also: steps }, y: { label, log: true }, open });
    grid.append(card(title, chart, legend(drawn), html("p", { className: "foot", textContent: `All ${steps.length} calls of the sampler, the first on the left${apart}.` })));
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
function insides(grid, found) {
  const names = Object.keys(found.ranges);
  const spans = names.map((name) => found.ranges[name].low.map((low, step) => found.ranges[name].high[step] - low));
  const shares = spans.map((span) => span.map((value) => value / Math.max(...span)));
  const moving = names.map((name, index) => [Math.min(...shares[index]), name]).sort((a, b) => a[0] - b[0])[0][1];
  const holder = html("div"), select = html("select", { ariaLabel: "layer" }, ...names.map((name) => html("option", { textContent: name })));
  const show = (name) => { select.value = name; holder.replaceChildren(rangeChart(found, name)); };
  select.addEventListener("change", () => show(select.value));
  const titles = (y, x) => `${names[y]}, t = ${found.timestep[x]}: ${brief(found.ranges[names[y]].low[x])} to ${brief(found.ranges[names[y]].high[x])}`;
  show(moving);
  grid.append(wide(card(`${found.model}: activation ranges over the timesteps, each layer against its own widest`, heat(names, found.timestep, shares, titles, { label: "timestep t", pick: (row) => show(names[row]) }), html("p", { className: "foot", textContent: "Input of every layer in execution order, full precision. Dark: as wide as it gets. A calibration at one timestep sees one column. Click a row to draw that layer." }))));
  grid.append(card("One layer's range", select, holder));
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
  return plot(series, { x: { label: "timestep t", reverse: true }, y: { label: "input" }, title: `range of the input of ${name}` });
}

/** The concatenations one by one, the most uneven first. */
function shortcutCard(shortcuts) {
  const holder = html("div"), select = html("select", { ariaLabel: "shortcut" }, ...shortcuts.map(([name, one], index) => html("option", { value: index, textContent: `${name} (ranges ${brief(apart(one))} : 1)` })));
  const show = () => holder.replaceChildren(...histograms(...shortcuts[select.value]));
  select.addEventListener("change", show);
  show();
  return card("What the shortcuts read, deep and skip part", select, holder);
}

/** Histograms of the parts of a concatenation, and how many levels each has with one scale and with one of its own. */
function histograms(name, shortcut) {
  const width = (shortcut.high - shortcut.low) / shortcut.parts[0].counts.length, names = ["deep", "skip"];
  const label = (index) => (shortcut.parts.length === 2 ? names[index] : `part ${index + 1}`);
  const series = shortcut.parts.map((part, index) => ({
    name: label(index),
    ...look(index),
    dots: false,
    points: part.counts.map((count, bin) => [shortcut.low + (bin + 0.5) * width, count / part.counts.reduce((sum, value) => sum + value, 0) || NaN]),
  }));
  const whole = Math.max(...shortcut.parts.map((part) => part.range[1])) - Math.min(...shortcut.parts.map((part) => part.range[0]));
  const levels = shortcut.parts.map((part, index) => `${label(index)} ${Math.round((256 * (part.range[1] - part.range[0])) / whole)}`);
  const text = `Levels of 256 that a part's range spans when both share a scale: ${levels.join(", ")}. Split: 256 each.`;
  return [plot(series, { x: { label: "input" }, y: { label: "share of values", log: true }, title: `parts of the input of ${name}` }), legend(series), html("p", { className: "foot", textContent: text })];
}
