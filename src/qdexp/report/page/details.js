// The details of cells: parts of them in scripts, within the page or beside it. A page from the disk may read scripts alone.

const asked = new Map();

/** Called by such a script; `text` is the JSON of all that is told of its cells. */
function part(text) {
  for (const [id, told] of Object.entries(JSON.parse(text))) Object.assign(CELLS.get(id) ?? {}, told, { told: true });
}

/** Whether all that there is to know of these cells has been read. Where it has not, it is, and then `again` is called. */
function ready(cells, section, again) {
  if (cells.every((cell) => cell.told)) return true;
  const line = html("p", { className: "dull", textContent: "Reading …" });
  section.append(line);
  read(cells).then(again, (error) => Object.assign(line, { className: "notice", textContent: error.message }));
  return false;
}

async function read(cells) {
  const sources = new Set(cells.filter((cell) => !cell.told).map((cell) => DATA.parts[cell.part]));
  await Promise.all([...sources].map(ask));
  if (!cells.every((cell) => cell.told)) throw new Error(`${[...sources].join(", ")}: not of this page; make the report again`);
}

function ask(source) {
  if (!asked.has(source)) asked.set(source, new Promise((resolve, reject) => {
    const script = html("script", { src: source, onload: resolve });
    script.onerror = () => { asked.delete(source); reject(new Error(`${source} cannot be read: it has to lie beside this page`)); };
    document.head.append(script);
  }));
  return asked.get(source);
}
