// SPDX-License-Identifier: Apache-2.0
// One service: what it is, its backends with state and reason, who announces it, and what happened to it.

import { cell, el, List, say, table } from "./dom.js";
import { eventLine } from "./events.js";
import { drainButton } from "./session.js";
import { badge, number, short, since } from "./words.js";

const BACKENDS = [["State", "state"], ["Backend", "name"], ["Reason", "reason"], ["Weight", "number"], ["Packets/s", "number"], ["Flows", "number"], ["", "action"]];
const ANNOUNCED = [["MUX", "name"], ["Announces"], ["Why", "reason"]];

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
  const backends = table("Backends", BACKENDS);
  const announced = table("Announcements", ANNOUNCED);
  const events = el("ol", { class: "events" });
  const all = el("div", { hidden: true },
    panic, facts, el("h2", {}, "Backends"), backends.element, el("h2", {}, "Announcements"), announced.element,
    el("h2", {}, "Events"), events);
  section.replaceChildren(
    el("a", { href: "#/", class: "back" }, "← All services"),
    el("div", { class: "title" }, el("h2", { id: "service-title", tabindex: -1 }, name), state.element), missing, all);
  const lists = [
    new List(backends.body, (row) => `${row.name} ${row.address}`, backendLine),
    new List(announced.body, (row) => row.mux, announcedLine),
    new List(events, (row) => `${row.at} ${row.subject} ${row.text}`, eventLine),
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

function backendLine(backend) {
  const state = badge();
  const age = since();
  const [reason, weight, pps, flows] = [1, 2, 3, 4].map(() => el("span"));
  const drain = drainButton(backend.name);
  const title = el("div", {}, el("strong", {}, backend.name), el("small", {}, `${backend.address}:${backend.port}`));
  const contents = [el("div", {}, state.element, age.element), title, reason, weight, pps, flows, drain.element];
  return {
    element: el("tr", { role: "row", "data-backend": backend.name }, ...contents.map((item, index) => cell(BACKENDS[index], item))),
    update(row) {
      state.show(row.empty_since === null ? row.state : "drained");
      age.show(row.empty_since ?? row.since);
      say(reason, row.agent ? `${row.reason} (on ${row.agent})` : row.reason);
      say(weight, number(row.weight));
      say(pps, short(row.pps));
      say(flows, number(row.flows));
      drain.show(row.state.startsWith("drain"), { service: row.service, backend: row.name },
        `${row.name} of ${row.service} keeps its TCP connections and takes no new ones.`);
    },
  };
}

function announcedLine(item) {
  const state = badge();
  const why = el("span");
  const contents = [el("strong", {}, item.mux), state.element, why];
  return {
    element: el("tr", { role: "row" }, ...contents.map((content, index) => cell(ANNOUNCED[index], content))),
    update(row) {
      if (row.announces === null) state.show("unknown", "not reported");
      else state.show(row.announces ? "up" : "off", row.announces ? "yes" : "no");
      const peers = row.peers.map((peer) => `${peer.name}: ${peer.state}${peer.why ? `, ${peer.why}` : ""}`);
      say(why, [row.reason, ...peers].join("; "));
    },
  };
}
