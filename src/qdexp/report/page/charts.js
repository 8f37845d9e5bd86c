"use strict";
// Charts as SVG, coloured by the page's own variables so that they follow light and dark.

const NS = "http://www.w3.org/2000/svg";

/** An SVG element; `children` are elements or text. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const colour = (index) => `var(--c${index % 8})`;
/** How a line of the study is drawn: every second one dashed and with hollow dots, through which what lies below is seen, and
 * the others where the eight colours come again. */
function look(index) {
  const hollow = (index + Math.floor(index / 8)) % 2 === 1;
  return { colour: colour(index), dash: hollow ? "6 4" : "", hollow };
}
const finite = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, without an exponent where that stays short. */
function brief(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e");
  return String(Number(value.toPrecision(3)));
}

/** Pixels of a chart in one of `columns` beside each other: as many as it gets, so that its text is as large as is said. */
function chartWidth(columns = matchMedia("(max-width: 820px)").matches ? 1 : 2) {
  const padding = 38, gap = 16, margins = 40, page = Math.min(1400, document.documentElement.clientWidth) - margins;
  return Math.max(220, Math.floor((page - gap * (columns - 1)) / columns - padding));
}

/** A linear or logarithmic scale with round ticks, from data to pixels. */
function scale(values, from, to, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!(high > low)) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const map = log ? Math.log10 : (value) => value;
  const [a, b] = [map(low), map(high)], place = (value) => from + ((map(value) - a) / (b - a)) * (to - from);
  return Object.assign(place, { ticks: log ? decades(low, high) : steps(low, high), low, high });
}

function steps(low, high) {
  const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) ticks.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return ticks;
}

function decades(low, high) {
  const factors = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5], ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of factors) ticks.push(factor * 10 ** power);
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

/** Lines and points. series: {name, colour, points: [[x, y, label, target]], line, dots, hollow, area, dash}; axes: {label, log, reverse}. */
function plot(series, { x = {}, y = {}, width = chartWidth(), height = 300, title = "", open } = {}) {
  const usable = (point) => point && finite(point[0]) && finite(point[1]) && !(y.log && point[1] <= 0) && !(x.log && point[0] <= 0);
  const points = series.flatMap((one) => one.points.filter(usable));
  if (!points.length) return Object.assign(document.createElement("p"), { className: "dull", textContent: "nothing to draw" });
  const box = { left: 62, right: width - 14, top: 12, bottom: height - 42 };
  const ends = x.reverse ? [box.right, box.left] : [box.left, box.right];
  const across = scale(padded(points.map((point) => point[0]), x), ...ends, x.log);
  const heights = points.flatMap((point) => [point[1], point[4], point[5]]).filter((value) => finite(value) && !(y.log && value <= 0));
  const up = scale(padded(heights, y), box.bottom, box.top, y.log);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of up.ticks) {
    root.append(svg("line", { x1: box.left, x2: box.right, y1: up(tick), y2: up(tick), class: "tick" }));
    root.append(svg("text", { x: box.left - 7, y: up(tick) + 4, "text-anchor": "end" }, brief(tick)));
  }
  for (const tick of x.ticks === false ? [] : across.ticks)
    root.append(svg("text", { x: across(tick), y: box.bottom + 17, "text-anchor": "middle" }, brief(tick)));
  root.append(svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }));
  root.append(svg("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, x.label || ""));
  root.append(svg("text", { transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label || ""));
  const below = (one) => Number(Boolean(one.hollow)); // what is seen through lies on top
  for (const one of [...series].sort((a, b) => below(a) - below(b))) drawSeries(root, one, one.points.filter(usable), across, up, box, open);
  return root;
}

/** The values with a margin of a twentieth on the side of dots; `also`: those that must be in sight too. */
function padded(values, axis) {
  const all = [...values, ...(axis.also ?? [])];
  const low = Math.min(...all), high = Math.max(...all);
  if (axis.tight) return [low, high];
  return axis.log ? [low / 1.25, high * 1.25] : [low - (high - low) * 0.06, high + (high - low) * 0.06];
}

function drawSeries(root, one, points, across, up, box, open) {
  const places = points.map((point) => `${across(point[0]).toFixed(1)},${up(point[1]).toFixed(1)}`);
  if (one.area && places.length) {
    const back = one.area.map((point) => `${across(point[0]).toFixed(1)},${up(point[1]).toFixed(1)}`).reverse();
    root.append(svg("polygon", { points: [...places, ...back].join(" "), fill: one.colour, opacity: 0.22 }));
  }
  if (one.line !== false)
    root.append(svg("polyline", { points: places.join(" "), fill: "none", stroke: one.colour, "stroke-width": 1.8, "stroke-dasharray": one.dash || "none" }));
  if (one.dots === false) return;
  for (const point of points) {
    const [, , label, target, low, high] = point, x = across(point[0]);
    if (finite(low) && finite(high)) {
      const floor = Math.min(box.bottom, Math.max(box.top, up(Math.max(low, up.low))));
      root.append(svg("line", { x1: x, x2: x, y1: floor, y2: Math.max(box.top, up(Math.min(high, up.high))), stroke: one.colour, "stroke-width": 1.4, opacity: 0.7 }));
    }
    const face = one.hollow ? { fill: "none", stroke: one.colour, "stroke-width": 1.6, "pointer-events": "all" } : { fill: one.colour };
    const dot = svg("circle", { cx: x, cy: up(point[1]), r: one.radius || 3.4, ...face }, svg("title", {}, label || `${brief(point[0])}, ${brief(point[1])}`));
    if (target && open) {
      dot.classList.add("hit");
      dot.addEventListener("click", () => open(target));
    }
    root.append(dot);
  }
}

/** A value with its interval a row; where that is narrow, below its name. rows: {name, value, low, high, colour, target, text}. */
function whiskers(rows, { label = "", log = false, width = chartWidth(), open } = {}) {
  const narrow = width < 480, row = narrow ? 48 : 26, height = rows.length * row + 46;
  const longest = 40, names = 8 + 7.3 * Math.min(longest, Math.max(...rows.map((one) => one.name.length)));
  const left = narrow ? 0 : names, right = narrow ? width : width - 110;
  const ends = rows.flatMap((one) => [one.value, one.low, one.high]).filter((value) => finite(value) && (!log || value > 0));
  const across = scale(padded(ends, log ? { log } : { also: [0] }), left + 8, right - 8, log);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }), bottom = height - 40;
  for (const tick of across.ticks) {
    root.append(svg("line", { x1: across(tick), x2: across(tick), y1: 4, y2: bottom, class: "tick" }));
    root.append(svg("text", { x: across(tick), y: bottom + 16, "text-anchor": "middle" }, brief(tick)));
  }
  root.append(svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, label));
  rows.forEach((one, index) => {
    const top = 4 + index * row, y = top + (narrow ? 28 : 13), text = narrow ? top + 16 : y + 4, group = svg("g", { class: open ? "hit" : "" });
    group.append(svg("rect", { x: 0, y: top, width, height: row, fill: "transparent" }));
    const name = { x: narrow ? 0 : left, y: text, "text-anchor": narrow ? "start" : "end", class: "name" };
    group.append(svg("text", name, one.name.length > longest ? `${one.name.slice(0, longest - 1)}…` : one.name, svg("title", {}, one.name)));
    if (finite(one.low)) {
      const from = across(Math.max(one.low, across.low)), to = across(Math.min(one.high, across.high));
      group.append(svg("line", { x1: from, x2: to, y1: y, y2: y, stroke: one.colour, "stroke-width": 5, opacity: 0.35, "stroke-linecap": "round" }));
    }
    group.append(svg("circle", { cx: across(one.value), cy: y, r: 4.6, fill: one.colour }));
    group.append(svg("text", { x: width, y: text, "text-anchor": "end" }, one.text));
    if (open) group.addEventListener("click", () => open(one.target));
    root.append(group);
  });
  return root;
}

/** A row a name, a column a step; `values[row][column]` in 0 ... 1 is how strong the colour is. */
function heat(names, columns, values, titles, { width = chartWidth(1), label = "", pick } = {}) {
  const row = 11, left = Math.min(236, Math.round(width * 0.42)), cell = (width - left) / columns.length;
  const longest = Math.floor((left - 10) / 5.6), ended = (name) => (name.length > longest ? `…${name.slice(1 - longest)}` : name);
  const root = svg("svg", { viewBox: `0 0 ${width} ${names.length * row + 40}`, role: "img" });
  names.forEach((name, y) => {
    root.append(svg("text", { x: left - 8, y: y * row + 9, "text-anchor": "end", style: "font-size:9.5px" }, ended(name), svg("title", {}, name)));
    values[y].forEach((value, x) => {
      const rect = svg("rect", { x: left + x * cell, y: y * row, width: cell + 0.3, height: row + 0.3, fill: "var(--c0)", "fill-opacity": (0.03 + 0.97 * value ** 1.6).toFixed(3), class: "hit" });
      rect.append(svg("title", {}, titles(y, x)));
      if (pick) rect.addEventListener("click", () => pick(y));
      root.append(rect);
    });
  });
  const bottom = names.length * row, every = Math.ceil(34 / cell);
  columns.forEach((column, x) => {
    if (x % every === 0) root.append(svg("text", { x: left + (x + 0.5) * cell, y: bottom + 15, "text-anchor": "middle" }, String(column)));
  });
  root.append(svg("text", { x: left + (width - left) / 2, y: bottom + 34, "text-anchor": "middle" }, label));
  return root;
}
