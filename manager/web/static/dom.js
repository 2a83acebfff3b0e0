// SPDX-License-Identifier: Apache-2.0
// Making and changing elements. Names and reasons come from nodes: they become text here, never markup.

/** An element with attributes ("on…" are listeners, null is left out) and children, which are nodes or texts. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Changes a text only if it is another one: what has the focus or a selection stays as it is. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, key, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(key);
  else if (element.getAttribute(key) !== String(value)) element.setAttribute(key, value);
}

/** Keeps one child for each item: make(item) returns {element, update(item)}. Elements stay the same ones. */
export class List {
  constructor(container, keyOf, make) {
    this.container = container;
    this.keyOf = keyOf;
    this.make = make;
    this.known = new Map();
  }

  show(items) {
    const known = new Map();
    let place = this.container.firstChild;
    for (const item of items) {
      const key = this.keyOf(item);
      const row = this.known.get(key) ?? this.make(item);
      row.update(item);
      known.set(key, row);
      if (row.element === place) place = place.nextSibling;
      else this.container.insertBefore(row.element, place);
    }
    for (const [key, row] of this.known) if (known.get(key) !== row) row.element.remove();
    this.known = known;
  }
}

/** A table whose rows become cards where there is little room. columns: [heading, class]. */
export function table(label, columns) {
  const body = el("tbody", { role: "rowgroup" });
  const head = columns.map(([title, kind]) => el("th", { scope: "col", role: "columnheader", class: kind ?? "" }, title));
  const element = el(
    "table", { role: "table", "aria-label": label },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)), body,
  );
  return { element, body };
}

export function cell(column, ...children) {
  const [title, kind] = column;
  return el("td", { role: "cell", class: kind ?? "", "data-title": title }, ...children);
}
