// SPDX-License-Identifier: Apache-2.0
// One service: what it is, its backends with state and reason, who announces it, and what happened to it.

import { el, List, say } from "./dom.js";
import { eventLine } from "./events.js";
import { drainButton } from "./session.js";
import { rowTable } from "./table.js";
import { badge, number, short } from "./words.js";

/** Returns show(name, detail). */
export function service(section) {
  let shown = null;
  let view = null;
  return (name, detail) => {
    if (shown !== name) {
      shown = name;
      view = make(section, name);
    }
    view(detail);
  };
}

function make(section, name) {
  const state = badge();
  const facts = el("p", { class: "facts" });
  const panic = el("p", { class: "notice bad", hidden: true });
  const missing = el("p", { class: "notice" }, "Reading …");
  const backends = rowTable("Backends", "backends", (row) => `${row.name} ${row.address}`,
    [{ heading: "", kind: drain, role: "action" }], (row) => ({ "data-backend": row.name }));
  const announced = rowTable("Announcements", "announcements", (row) => row.mux);
  const events = el("ol", { class: "events" });
  const all = el("div", { hidden: true },
    panic, facts, el("h2", {}, "Backends"), backends.element, el("h2", {}, "Announcements"), announced.element,
    el("h2", {}, "Events"), events);
  section.replaceChildren(
    el("a", { href: "#/", class: "back" }, "← All services"),
    el("div", { class: "title" }, el("h2", { id: "service-title", tabindex: -1 }, name), state.element), missing, all);
  const lists = [
    backends, announced, new List(events, (row) => `${row.at} ${row.subject} ${row.text}`, eventLine),
  ];
  return (detail) => {
    missing.hidden = detail !== null && detail !== undefined;
    all.hidden = !missing.hidden;
    state.element.hidden = all.hidden;
    if (detail === null) say(missing, `There is no service “${name}”; it may have been deleted.`);
    if (!detail) return;
    const row = detail.service;
    state.show(row.state);
    const wrong = [detail.panic && `PANIC: ${detail.panic}`, row.note].filter(Boolean).join("; ");
    panic.hidden = wrong === "";
    say(panic, wrong);
    say(facts, `${row.vip} ${row.protocol}/${row.port === "0" ? "any port" : row.port} · ${short(row.pps)} packets/s, ` +
      `${number(row.flows)} flows · Probe: ${detail.probe} · Announced ${detail.policy}`);
    const worst = { down: 0, panic: 1, unknown: 2, installing: 3, drain: 4, drained: 4, up: 5 };
    lists[0].show([...detail.backends].sort((a, b) => (worst[a.state] ?? 0) - (worst[b.state] ?? 0)));
    lists[1].show(detail.announcements);
    lists[2].show([...detail.events].reverse());
  };
}

/** The last cell of a backend: the button that drains it. */
function drain() {
  let button = null;
  const element = el("span");
  return {
    element,
    update(row) {
      if (button === null) {
        button = drainButton(row.name);
        element.replaceChildren(button.element);
      }
      button.show(row.state.startsWith("drain"), { service: row.service, backend: row.name },
        `${row.name} of ${row.service} keeps its TCP connections and takes no new ones.`);
    },
  };
}
