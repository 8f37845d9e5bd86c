// The page itself: notices, the address, light and dark.

function notices() {
  const said = [...DATA.gaps];
  if (DATA.missing.length) said.unshift(`${DATA.missing.length} of ${DATA.missing.length + DATA.cells.length} cells have no record yet: ${listed(DATA.missing)}`);
  const failed = DATA.cells.filter((cell) => cell.status === "failed");
  if (failed.length) said.unshift(`${failed.length} cells failed: ${listed(failed.map((cell) => cell.name))}`);
  byId("notices").replaceChildren(...said.map((text) => html("p", { className: "notice", textContent: text })));
}

const listed = (names) => names.slice(0, 12).join(", ") + (names.length > 12 ? ", …" : "");

/** What lies on top of the page, and what draws it. */
const SHEETS = { cell: detail, compare };

/** What the address names lies on top of the page, which stays where it is; closed, one is where one was. */
function route() {
  const [what, ids] = decodeURIComponent(location.hash.slice(1)).split("=");
  if (what === "cell" && CELLS.has(ids)) state.cell = ids;
  if (what === "compare" && ids) state.pair = ids.split(",").filter((id) => CELLS.has(id)).slice(0, 2);
  marks();
  for (const [name, draw] of Object.entries(SHEETS)) {
    const sheet = byId(name), wanted = name === what && (name !== "cell" || CELLS.has(state.cell));
    if (!wanted) sheet.close();
    else {
      draw();
      if (!sheet.open) sheet.showModal();
      sheet.scrollTop = 0;
    }
  }
}

/** Charts are drawn as wide as their boxes, so that their text keeps its size: anew where the window's width changes. */
function fit() {
  let drawn = chartWidth(), waiting;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      if (chartWidth() === drawn) return;
      drawn = chartWidth();
      figures();
      for (const [name, draw] of Object.entries(SHEETS)) if (byId(name).open) draw();
    });
  });
}

function theme(name) {
  document.documentElement.dataset.theme = name;
}

function start() {
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  byId("title").textContent = DATA.title;
  const [said, floor] = DATA.protocol.split(/(?=floor [^,]*$)/);
  byId("protocol").replaceChildren(said, ...(floor ? [html("abbr", { title: MEANINGS.floor, textContent: floor })] : []));
  DATA.lines.forEach((line, index) => {
    Object.assign(line, look(index));
    for (const id of line.cells) Object.assign(CELLS.get(id), look(index));
  });
  for (const cell of DATA.cells) cell.colour ??= "var(--soft)";
  notices();
  overview();
  figures();
  for (const name of Object.keys(SHEETS))
    byId(name).addEventListener("close", () => { if (location.hash.slice(1).split("=")[0] === name) history.replaceState(null, "", location.pathname + location.search); });
  addEventListener("hashchange", route);
  fit();
  route();
}

addEventListener("DOMContentLoaded", start); // the details within the page have been read by then
