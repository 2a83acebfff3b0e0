// SPDX-License-Identifier: Apache-2.0
// Numbers, times and states in words. A state is a shape, a word and a colour: never a colour alone.

import { el, svg } from "./dom.js";

const LEVELS = {
  well: ["up", "ready", "established", "announced", "well"],
  warn: ["degraded", "drain", "draining", "drained", "following", "late", "unknown", "installing", "new", "warn", "no agent", "retiring"],
  bad: ["down", "PANIC", "panic", "gone", "away", "refused", "bad"],
};
const LEVEL = new Map(Object.entries(LEVELS).flatMap(([level, states]) => states.map((state) => [state, level])));

/** well, warn, bad or idle. */
export function levelOf(state) {
  return LEVEL.get(state) ?? "idle";
}

/** Which shape, in a square of 12: disc, cross, half disc, triangle, ring. */
function shapeOf(state) {
  if (levelOf(state) === "well") return svg("circle", { cx: 6, cy: 6, r: 4.5, fill: "currentColor" });
  if (["drain", "draining", "drained"].includes(state)) {
    return svg("g", {}, svg("circle", { cx: 6, cy: 6, r: 4.4, fill: "none", stroke: "currentColor", "stroke-width": 1.6 }), svg("path", { d: "M6 1.6a4.4 4.4 0 0 0 0 8.8z", fill: "currentColor" }));
  }
  if (["degraded", "PANIC", "panic", "warn", "late"].includes(state)) return svg("path", { d: "M6 1 11.5 11H.5z", fill: "currentColor" });
  if (levelOf(state) === "bad") return svg("path", { d: "M2 2l8 8M10 2l-8 8", stroke: "currentColor", "stroke-width": 2.6, "stroke-linecap": "round" });
  return svg("circle", { cx: 6, cy: 6, r: 4, fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-dasharray": "2.4 1.6" });
}

export function icon(state, size = 12) {
  return svg("svg", { viewBox: "0 0 12 12", width: size, height: size, "aria-hidden": "true", class: "icon" }, shapeOf(state));
}

/** The state in a cell of its own; show(state, word) changes it. */
export function badge() {
  const element = el("span", { class: "badge" });
  let shown;
  return {
    element,
    show(state, word = state) {
      const key = `${state} ${word}`;
      if (key === shown) return;
      shown = key;
      element.dataset.level = levelOf(state);
      element.replaceChildren(icon(state), word ?? "not known");
    },
  };
}

export function number(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

/** 999, 1.2 k, 35 M: three figures are enough at a glance. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

let ahead = 0; // the manager's clock less ours, seconds

export function setClock(at) {
  ahead = at - Date.now() / 1000;
}

export function now() {
  return Date.now() / 1000 + ahead;
}

export function clockText(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString("en-GB");
  return now() - at > 20 * 3600 ? `${date.toLocaleDateString("en-CA")} ${time}` : time;
}

export function ago(at) {
  const seconds = Math.max(0, now() - at);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${Math.floor(seconds)} s`;
}

/** A time that grows older by itself. */
export function since() {
  const element = el("time", { class: "since" });
  return {
    element,
    show(at) {
      if (at === null || at === undefined) {
        delete element.dataset.at;
        element.textContent = "";
        return;
      }
      element.dataset.at = at;
      element.dateTime = new Date(at * 1000).toISOString();
      element.title = new Date(at * 1000).toLocaleString("en-GB");
      age(element);
    },
  };
}

function age(element) {
  const text = `for ${ago(Number(element.dataset.at))}`;
  if (element.textContent !== text) element.textContent = text;
}

setInterval(() => document.querySelectorAll("time[data-at]").forEach(age), 1000);
