// Two cells side by side.

/** Made once: of a large study they have thousands of options. */
const choosers = [0, 1].map(chooser);

function compare() {
  const sheet = byId("compare"), pair = state.pair.map((id) => CELLS.get(id)).filter(Boolean), grid = html("div", { className: "grid" });
  sheet.replaceChildren(sheetHead(sheet, "Compare"), html("div", { className: "bar" }, ...choosers), grid);
  choosers.forEach((select, place) => { select.value = state.pair[place] ?? ""; });
  if (pair.length < 2 || !ready(pair, sheet, compare)) return;
  const [one, other] = pair;
  grid.append(wide(card("Numbers", comparedNumbers(one, other), html("p", { className: "foot", textContent: "Difference: second less first, with a 95 % interval on the same noise where both were measured sample by sample; coloured where that does not hold zero and both cells have no calibration, which a seed would move." }))));
  grid.append(wide(card("What differs in their configs", configDifference(one, other))));
  curveCards(grid, pair.map((cell, index) => ({ ...look(index), name: `${"AB"[index]}: ${cell.name}`, cell })));
  sampleCard(grid, pair.map((cell, index) => ({ name: `${"AB"[index]}: ${cell.name}`, cell })));
}

function chooser(place) {
  const select = html("select", { id: `pick${place}`, ariaLabel: `cell ${"AB"[place]}` }, html("option", { value: "", textContent: `cell ${"AB"[place]}` }), ...DATA.cells.map((cell) => html("option", { value: cell.id, textContent: cell.name })));
  select.addEventListener("change", () => {
    const pair = choosers.map((one) => one.value);
    if (pair.every(Boolean)) location.hash = `compare=${pair.join(",")}`;
  });
  return select;
}

function comparedNumbers(one, other) {
  const rows = DATA.metrics.filter((metric) => one.numbers[metric.key] || other.numbers[metric.key]).map((metric) => {
    const apart = paired(other, one, metric.key) ?? plainDifference(other.numbers[metric.key], one.numbers[metric.key]);
    return html("tr", {}, html("td", { className: "text", textContent: metric.title, title: meaning(metric) }), html("td", {}, number(metric, one.numbers[metric.key])), html("td", {}, number(metric, other.numbers[metric.key])), html("td", {}, apart ? difference(metric, apart, !one.calibrated && !other.calibrated) : ""));
  });
  const head = ["metric", `A: ${one.name}`, `B: ${other.name}`, "B − A"].map((title, index) => html("th", { textContent: title, className: index ? "" : "text" }));
  return html("div", { className: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...rows)));
}

/** Of numbers that were not measured image by image: without an interval. */
const plainDifference = (one, other) => (finite(one?.[0]) && finite(other?.[0]) ? [one[0] - other[0]] : null);

function configDifference(one, other) {
  const names = [...new Set([...Object.keys(one.options), ...Object.keys(other.options)])];
  const differing = names.filter((name) => JSON.stringify(one.options[name]) !== JSON.stringify(other.options[name]));
  if (!differing.length) return html("p", { className: "dull", textContent: "Nothing: the same config." });
  const text = (value) => (value === undefined ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const rows = differing.map((name) => html("tr", {}, ...[name, text(one.options[name]), text(other.options[name])].map((value) => html("td", { className: "text", textContent: value }))));
  return html("div", { className: "scroll" }, html("table", { className: "differs", id: "differs" }, html("thead", {}, html("tr", {}, ...["option", "A", "B"].map((title) => html("th", { className: "text", textContent: title })))), html("tbody", {}, ...rows)));
}
