// One cell: its numbers, provenance, curves, layers, config, log.

/** The head of what lies on top of the page, with the way back. */
function sheetHead(sheet, title) {
  const back = html("button", { className: "back", textContent: "← back" });
  back.addEventListener("click", () => sheet.close());
  return html("div", { className: "sheethead" }, html("h2", { textContent: title }), back);
}

function detail() {
  const sheet = byId("cell"), cell = CELLS.get(state.cell), grid = html("div", { className: "grid" });
  sheet.replaceChildren(sheetHead(sheet, `Cell ${cell.name}`), grid);
  if (!ready([cell], sheet, detail)) return;
  if (cell.error) grid.append(wide(card(`Failed in ${cell.error.stage}: ${cell.error.type}`, html("pre", { textContent: cell.error.traceback || cell.error.message }))));
  const times = Object.fromEntries(Object.entries(cell.costs).map(([stage, seconds]) => [stage, duration(seconds)]));
  const beside = html("div", { className: "stack" }, card("Provenance", facts(cell.provenance)), card("Time of its stages", facts(times)));
  grid.append(card("Numbers", numbersTable(cell)), beside);
  if (cell.samples) grid.append(wide(card("Samples", picture(cell))));
  curveCards(grid, [{ ...cell, cell }]);
  if (cell.layers) layerCards(grid, cell);
  if (cell.coverage) grid.append(wide(coverageCard(cell.coverage)));
  if (cell.conformance) grid.append(wide(conformanceCard(cell)));
  grid.append(wide(card(null, folded("Config", facts(cell.options)))), wide(card(null, folded("Protocol and keys", facts(cell.protocol)))), wide(card(null, folded("Log: what was computed for this cell, and when", html("pre", { textContent: cell.log || "no line in executions.jsonl" })))));
}

const folded = (title, content) => html("details", { open: title === "Config" }, html("summary", { textContent: title }), content);

function facts(entries) {
  return html("dl", {}, ...Object.entries(entries).flatMap(([name, value]) => [html("dt", { textContent: name }), html("dd", { textContent: value === null ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value) })]));
}

function numbersTable(cell) {
  const rows = DATA.metrics.filter((metric) => cell.numbers[metric.key]).map((metric) =>
    html("tr", {}, html("td", { className: "text", textContent: metric.title, title: meaning(metric) }), html("td", {}, number(metric, cell.numbers[metric.key])), html("td", {}, cell.differences[metric.key] ? difference(metric, cell.differences[metric.key], cell.verdict) : "")));
  return html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, html("th", { textContent: "metric", className: "text" }), html("th", { textContent: "value" }), html("th", { textContent: DATA.baseline ? `− ${DATA.baseline}` : "" }))), html("tbody", {}, ...rows)));
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

function coverageCard(coverage) {
  const percent = (share) => `${(100 * share).toFixed(2)} %`;
  const shares = ["macs", "parameters"].map((what) => `${what === "macs" ? "MACs" : what}: ${Object.entries(coverage[what]).map(([bits, share]) => `${percent(share)} ${bits}`).join(", ")}; of those asked for ${percent(coverage.quantized[what])} quantized`);
  const rows = coverage.left_out.map((kind) => html("tr", {}, html("td", { className: "text", textContent: kind.kind }), html("td", { textContent: kind.count }), html("td", { textContent: kind.parameters.toLocaleString("en") }), html("td", { textContent: kind.macs.toLocaleString("en") }), html("td", { className: "text dull", textContent: kind.names.join(", ") + (kind.count > kind.names.length ? ", …" : "") })));
  const header = ["in full precision", "count", "parameters", "MACs", "for example"].map((title, index) => html("th", { textContent: title, className: index % 4 ? "" : "text" }));
  return card("What is quantized", ...shares.map((text) => html("p", { textContent: text })), html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...header)), html("tbody", {}, ...rows))));
}

function conformanceCard(cell) {
  const rows = cell.conformance.map((line) => html("tr", {}, ...line.map((text, index) => html("td", { textContent: text, className: index ? "text" : "text dull" }))));
  return card("Against the paper", html("div", { className: "scroll" }, html("table", { className: "wrap" }, html("tbody", {}, ...rows))));
}
