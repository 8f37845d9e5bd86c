// The page itself: notices, the address, light and dark.

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
