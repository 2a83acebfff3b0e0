// SPDX-License-Identifier: Apache-2.0
// Tables of rows. Their columns are those of the rows' types (columns.js is made of lb/rows); how a cell of a kind is
// drawn stands here. A kind makes {element, update(row, key)}.

import { COLUMNS } from "./columns.js";
import { cell, el, List, say, table } from "./dom.js";
import { badge, number, short, since } from "./words.js";

const text = (words) => () => {
  const element = el("span");
  return { element, update: (row, key) => say(element, words(row[key], row)) };
};

const KINDS = {
  text: text((value) => String(value ?? "")),
  number: text(number),
  short: text(short),
  endpoint: text((value, row) => `${value} ${row.protocol}/${row.port === "0" ? "any" : row.port}`),
  healthy: text((value, row) => `${value} of ${row.backends}`),
  reason: text((value, row) => (row.agent ? `${value} (on ${row.agent})` : value)),
  peers: text((value, row) => [value, ...row.peers.map((peer) => `${peer.name}: ${peer.state}${peer.why ? `, ${peer.why}` : ""}`)].join("; ")),
  announced: text((value, row) => {
    const some = value.length > 0 ? names(value) : "nobody";
    return row.wanted_by.every((mux) => value.includes(mux)) ? some : `${some}; ${names(row.wanted_by)} should`;
  }),
  strong: () => {
    const element = el("strong");
    return { element, update: (row, key) => say(element, row[key]) };
  },
  service: () => {
    const element = el("a");
    return {
      element,
      update(row, key) {
        element.setAttribute("href", `#/service/${encodeURIComponent(row[key])}`);
        say(element, row[key]);
      },
    };
  },
  backend: () => {
    const [name, address] = [el("strong"), el("small")];
    return {
      element: el("div", {}, name, address),
      update(row, key) {
        say(name, row[key]);
        say(address, `${row.address}:${row.port}`);
      },
    };
  },
  state: () => {
    const state = badge();
    return { element: state.element, update: (row, key) => state.show(row[key]) };
  },
  "state-since": () => {
    const [state, age] = [badge(), since()];
    return {
      element: el("div", {}, state.element, age.element),
      update(row, key) {
        state.show(row.empty_since === null ? row[key] : "drained");
        age.show(row.empty_since ?? row.since);
      },
    };
  },
  answer: () => {
    const state = badge();
    return {
      element: state.element,
      update(row, key) {
        if (row[key] === null) state.show("unknown", "not reported");
        else state.show(row[key] ? "up" : "off", row[key] ? "yes" : "no");
      },
    };
  },
};

function names(found) {
  return found.length <= 3 ? found.join(", ") : `${found.length} MUXes`;
}

/** A table of rows of a kind; more: columns of the page's own, whose kind is a function. show(rows) changes it. */
export function rowTable(label, name, keyOf, more = [], attributes = () => ({})) {
  const columns = [...COLUMNS[name], ...more];
  const { element, body } = table(label, columns.map((column) => [column.heading, column.role]));
  const list = new List(body, keyOf, (row) => line(columns, attributes(row)));
  return { element, show: (rows) => list.show(rows) };
}

function line(columns, attributes) {
  const cells = columns.map(({ kind }) => (typeof kind === "function" ? kind : KINDS[kind] ?? KINDS.text)());
  const contents = cells.map((item, index) => cell([columns[index].heading, columns[index].role], item.element));
  return {
    element: el("tr", { role: "row", ...attributes }, ...contents),
    update: (row) => cells.forEach((item, index) => item.update(row, columns[index].key)),
  };
}
