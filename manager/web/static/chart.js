// SPDX-License-Identifier: Apache-2.0
// Line charts of the last five minutes: one line for each MUX while they are few, and one for all together.

import { el, List, say, svg } from "./dom.js";
import { clockText, short } from "./words.js";

const FEW = 4;
const WIDTH = 400;
const HEIGHT = 120;
const LEFT = 44;
const BOTTOM = 18;
const TOP = 8;
const SPAN = 300; // seconds
const DASHES = ["none", "7 3", "2 3", "9 3 2 3", "4 4"];

const CHARTS = [
  ["pps", "Packets forwarded", "packets/s"],
  ["flows", "Flows", "flows"],
  ["dropped", "Packets dropped", "packets/s"],
];

/** Returns show(history). */
export function charts(container) {
  const made = CHARTS.map(([field, title, unit]) => chart(field, title, unit));
  container.append(...made.map((item) => item.element));
  return (history) => made.forEach((item) => item.show(history));
}

function chart(field, title, unit) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const value = el("strong");
  const legend = el("ul", { class: "legend" });
  const element = el("figure", {}, el("figcaption", {}, el("span", {}, title), value), drawing, legend);
  const entries = new List(legend, (line) => line.name, legendEntry);
  return {
    element,
    show(history) {
      const lines = linesOf(history, field);
      const last = lines[0].points.at(-1);
      say(value, last === null || last === undefined ? "not known" : `${short(last)} ${unit}`);
      const known = lines[0].points.filter((point) => point !== null);
      drawing.setAttribute("aria-label", known.length === 0 ? `${title}: nothing is known yet` :
        `${title}, last five minutes: ${short(Math.min(...known))} to ${short(Math.max(...known))} ${unit}`);
      draw(drawing, lines, history);
      entries.show(lines.length > 1 ? lines.map((line, index) => ({ ...line, index })) : []);
    },
  };
}

function legendEntry(line) {
  const value = el("span", { class: "number" });
  const sample = svg("line", { x1: 0, y1: 4, x2: 22, y2: 4, class: `line line${line.index}`, "stroke-dasharray": DASHES[line.index] });
  const element = el("li", {}, svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, sample), `${line.name} `, value);
  return { element, update: (item) => say(value, short(item.points.at(-1))) };
}

function linesOf(history, field) {
  const names = Object.keys(history.muxes);
  const few = names.length > 1 && names.length <= FEW ? names : [];
  return [
    { name: "all", points: history.total?.[field] ?? [] },
    ...few.map((name) => ({ name, points: history.muxes[name][field] })),
  ];
}

function draw(drawing, lines, history) {
  const top = ceiling(Math.max(0, ...lines.flatMap((line) => line.points.filter((point) => point !== null))));
  const end = history.first + (history.points - 1) * history.step;
  const x = (index) => LEFT + (WIDTH - LEFT - 6) * (1 - (end - history.first - index * history.step) / SPAN);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value / top);
  const parts = [0, 0.5, 1].flatMap((share) => [
    svg("line", { x1: LEFT, x2: WIDTH - 6, y1: y(top * share), y2: y(top * share), class: "grid" }),
    svg("text", { x: LEFT - 6, y: y(top * share) + 4, class: "axis", "text-anchor": "end" }, short(top * share)),
  ]);
  if (history.points > 0) {
    parts.push(
      svg("text", { x: LEFT, y: HEIGHT - 4, class: "axis" }, clockText(end - SPAN)),
      svg("text", { x: WIDTH - 6, y: HEIGHT - 4, class: "axis", "text-anchor": "end" }, clockText(end)),
    );
  }
  lines.forEach((line, index) => {
    parts.push(svg("path", { d: path(line.points, x, y), class: `line line${index}`, "stroke-dasharray": DASHES[index] }));
  });
  drawing.replaceChildren(...parts);
}

/** Where nothing is known, there is a gap. */
function path(points, x, y) {
  let pen = "M";
  let found = "";
  points.forEach((value, index) => {
    if (value === null) return void (pen = "M");
    found += `${pen}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return found;
}

/** The next number of 1, 2, 5, 10 … */
function ceiling(value) {
  if (value <= 10) return 10;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * size).find((step) => step >= value);
}
