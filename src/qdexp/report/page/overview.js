// The table of all cells: sorted, filtered, seeds pooled or not.

const several = (texts) => new Set(texts).size > 1;
const AXES = ["model", "method", "quant", "quantizer", "calib", "seed"].filter((axis) => several(DATA.cells.map((cell) => String(cell.axes[axis]))));
/** Whether the method alone does not tell the quantizer: only then is that a column of its own. */
const MIXED = new Set(DATA.cells.map((cell) => JSON.stringify([cell.axes.method, cell.axes.quantizer]))).size > new Set(DATA.cells.map((cell) => cell.axes.method)).size;
/** Rows that are drawn at once; more when one scrolls to their end. */
const DRAWN = 200;
const COLUMNS = { true: columns(true), false: columns(false) }, inOrder = new Intl.Collator("en", { numeric: true }).compare;

function columns(pooled) {
  const shown = [{ key: "name", title: pooled ? "method" : "cell", text: true, value: (row) => row.name, show: (row) => nameOf(row) }];
  for (const axis of AXES)
    if (axis !== "method" && (axis !== "quantizer" || MIXED) && !(pooled && axis === "seed"))
      shown.push({ key: `axis:${axis}`, title: axis, text: true, value: (row) => row.axes[axis], show: (row) => html("span", { textContent: row.axes[axis] }) });
  if (pooled) shown.push({ key: "seeds", title: "seeds", value: (row) => row.cells.length, show: (row) => html("span", { textContent: row.cells.length }) });
  for (const metric of DATA.metrics) {
    const values = DATA.cells.filter((cell) => cell.numbers[metric.key]).map((cell) => cell.numbers[metric.key][0]);
    if (!values.length || !metric.shown.includes("overview") || (metric.kind === "share" && Math.min(...values) >= 1)) continue;
    shown.push({ key: metric.key, title: metric.title, meaning: meaning(metric), value: (row) => row.numbers[metric.key]?.[0], show: (row) => number(metric, row.numbers[metric.key]) });
    if (metric.key === DATA.headline)
      shown.push({ key: "difference", title: `${metric.title} − ${DATA.baseline}`, meaning: `${metric.title} less that of ${DATA.baseline} on the same noise, with the 95 % interval of the paired difference: one that holds 0 is no finding.`, value: (row) => row.differences[metric.key]?.[0], show: (row) => difference(metric, row.differences[metric.key], row.verdict) });
  }
  shown.push({ key: "seconds", title: "time", value: (row) => row.seconds, show: (row) => html("span", { textContent: duration(row.seconds) }) });
  return shown;
}

function nameOf(row) {
  const link = html("a", { href: `#cell=${row.cells ? row.cells[0] : row.id}`, textContent: row.name, title: row.name });
  const name = html("span", { className: "name" }, html("i", { className: "swatch", style: `background:${row.colour}` }), link);
  return row.status === "failed" ? html("span", {}, name, html("span", { className: "failed", textContent: " failed" })) : name;
}

function duration(seconds) {
  if (!finite(seconds)) return "-";
  return seconds < 60 ? `${seconds.toFixed(0)} s` : seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function rowsShown() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = (state.pooled ? DATA.lines : DATA.cells).filter((row) => {
    row.text ??= [row.name, row.id, row.status, ...Object.values(row.axes)].join(" ").toLowerCase();
    return words.every((word) => row.text.includes(word)) && Object.entries(state.axes).every(([axis, value]) => !value || String(row.axes[axis]) === value);
  });
  const column = COLUMNS[state.pooled].find((one) => one.key === state.sort);
  if (!column) return rows;
  const rank = (a, b) => {
    const [x, y] = [column.value(a), column.value(b)], [noX, noY] = [x === undefined || x === null, y === undefined || y === null];
    if (noX || noY) return noX - noY; // what has no number stands last in either direction
    return (typeof x === "number" && typeof y === "number" ? x - y : inOrder(String(x), String(y))) * (state.down ? -1 : 1);
  };
  return [...rows].sort(rank);
}

function overview() {
  const section = byId("overview"), search = html("input", { type: "search", placeholder: "filter: words that a row must hold", value: state.words, id: "filter", ariaLabel: "words that a row must hold" });
  search.addEventListener("input", () => { state.words = search.value; anew(); });
  const bar = html("div", { className: "bar" }, search);
  for (const axis of AXES) {
    const values = [...new Set(DATA.cells.map((cell) => String(cell.axes[axis])))];
    const select = html("select", { name: axis, ariaLabel: `rows of which ${axis}` }, html("option", { value: "", textContent: `every ${axis}` }), ...values.map((value) => html("option", { value, textContent: value })));
    select.addEventListener("change", () => { state.axes[axis] = select.value; anew(); });
    bar.append(select);
  }
  if (DATA.lines.some((line) => line.cells.length > 1)) {
    const button = html("button", { textContent: "pool seeds", id: "pool", ariaPressed: String(state.pooled) });
    button.addEventListener("click", () => { state.pooled = !state.pooled; button.ariaPressed = String(state.pooled); anew(); });
    bar.append(button);
  }
  bar.append(html("span", { className: "count", id: "count", role: "status" }));
  const box = html("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "table of all rows" }, html("table", { id: "table" }));
  section.replaceChildren(html("h2", { textContent: "Overview" }), bar, html("div", { className: "card edged" }, box),
    html("button", { id: "more", hidden: true, textContent: "more rows", onclick: more }),
    html("p", { className: "foot", id: "notes" }), legendOfColumns());
  const edge = () => box.parentElement.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  box.addEventListener("scroll", edge);
  const sizes = new ResizeObserver(edge);
  for (const one of [box, box.firstChild]) sizes.observe(one);
  new IntersectionObserver(([button]) => button.isIntersecting && button.target.click()).observe(byId("more"));
  anew();
}

/** The table from its first row. */
function anew() {
  state.drawn = DRAWN;
  table();
}

/** The tooltips of the headers in one list, for fingers. */
function legendOfColumns() {
  const rows = [...COLUMNS[false].map((column) => [column.title, column.meaning ?? MEANINGS[column.title]]), ["floor", MEANINGS.floor]];
  const shown = new Set(rows.map(([title]) => title));
  const others = DATA.metrics.filter((metric) => !shown.has(metric.title)).map((metric) => [metric.title, meaning(metric)]);
  return html("details", { id: "meanings", className: "foot" }, html("summary", { textContent: "What the numbers are" }), facts(Object.fromEntries([...rows, ...others])));
}

/** What must be said with the rows that are shown. */
function said() {
  const alone = !state.pooled && DATA.lines.some((line) => line.cells.length > 1) ? ["each row is one seed: its intervals are over the images alone"] : [];
  return [...alone, ...DATA.notes, "Click a row for all of it; tick two to compare them."].join(". ");
}

/** The rows that are shown, of which the first `state.drawn` are drawn. */
let rows = [];

function table() {
  const shown = COLUMNS[state.pooled], all = state.pooled ? DATA.lines : DATA.cells;
  rows = rowsShown();
  const head = html("tr", {}, html("th", { title: "Tick two rows to compare them.", ariaLabel: "compare" }), ...shown.map(heading));
  const body = rows.slice(0, state.drawn).map(drawn);
  if (!rows.length) body.push(html("tr", {}, html("td", { className: "text dull", colSpan: shown.length + 1, textContent: "No row holds all of these words and choices." })));
  byId("table").replaceChildren(html("thead", {}, head), html("tbody", {}, ...body));
  byId("more").hidden = rows.length <= state.drawn;
  byId("notes").textContent = said();
  byId("count").textContent = rows.length === all.length ? `${all.length} rows` : `${rows.length} of ${all.length} rows`;
}

function drawn(row) {
  const line = html("tr", { className: "row" }, html("td", {}, ticker(row)), ...COLUMNS[state.pooled].map((column) => html("td", { className: column.text ? "text" : "" }, column.show(row))));
  line.dataset.id = row.id;
  if (row.id === state.cell) line.classList.add("open");
  line.addEventListener("click", () => open(state.pooled ? row.cells[0] : row.id));
  return line;
}

function more() {
  byId("table").tBodies[0].append(...rows.slice(state.drawn, (state.drawn += DRAWN)).map(drawn));
  byId("more").hidden = rows.length <= state.drawn;
}

function heading(column) {
  const arrow = state.sort === column.key ? (state.down ? " ↓" : " ↑") : "";
  const button = html("button", { textContent: column.title + arrow, title: column.meaning ?? MEANINGS[column.title] });
  const cell = html("th", { className: column.text ? "sortable text" : "sortable", scope: "col", ariaSort: arrow ? (state.down ? "descending" : "ascending") : "none" }, button);
  cell.dataset.key = column.key;
  cell.addEventListener("click", () => {
    [state.sort, state.down] = [column.key, state.sort === column.key && !state.down];
    anew();
    document.querySelector(`th[data-key="${column.key}"] button`).focus();
  });
  return cell;
}

function ticker(row) {
  const id = state.pooled ? row.cells[0] : row.id, box = html("input", { type: "checkbox", checked: state.pair.includes(id), value: id, ariaLabel: `compare ${row.name}` });
  box.addEventListener("click", (event) => event.stopPropagation());
  box.addEventListener("change", () => {
    state.pair = box.checked ? [...state.pair, id].slice(-2) : state.pair.filter((other) => other !== id);
    marks();
    if (state.pair.length === 2) location.hash = `compare=${state.pair.join(",")}`;
  });
  return box;
}

/** Shows in the rows which cell is open and which two are compared, and leaves the focus where it is. */
function marks() {
  for (const row of document.querySelectorAll("#table tr.row")) {
    const box = row.querySelector("input");
    row.classList.toggle("open", row.dataset.id === state.cell);
    box.checked = state.pair.includes(box.value);
  }
}

const open = (id) => { location.hash = `cell=${id}`; };
