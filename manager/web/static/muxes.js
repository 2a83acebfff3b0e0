// SPDX-License-Identifier: Apache-2.0
// MUXes: how they are, their BGP sessions, VIPs, generation and flow table.

import { el, List, mark, say } from "./dom.js";
import { drainButton } from "./session.js";
import { badge, number, since } from "./words.js";

export function muxes(container) {
  const list = new List(container, (row) => row.name, card);
  const none = el("p", { class: "notice" }, "No MUX has joined yet.");
  container.before(none);
  return (page) => {
    none.hidden = page.muxes.length > 0;
    list.show(page.muxes);
  };
}

function card(mux) {
  const state = badge();
  const age = since();
  const why = el("p", { class: "notice", hidden: true });
  const [generation, counts, io, vips, fill] = [1, 2, 3, 4, 5].map(() => el("span"));
  const meter = el("meter", { min: 0, max: 1, high: 0.9, "aria-label": `Flow table of ${mux.name}` });
  const sessions = el("ul", { class: "peers" });
  const list = new List(sessions, (peer) => `${peer.name} ${peer.address}`, session);
  const drain = drainButton(mux.name);
  const title = el("div", { class: "title" }, el("h3", {}, mux.name), state.element, age.element, drain.element);
  const fact = (name, ...children) => [el("dt", {}, name), el("dd", {}, ...children)];
  const facts = el("dl", {},
    ...fact("BGP", sessions), ...fact("VIPs", vips), ...fact("Flow table", meter, fill),
    ...fact("Generation", generation), ...fact("Packets", counts), ...fact("I/O", io));
  return {
    element: el("article", { class: "card" }, title, why, facts),
    update(row) {
      state.show(row.drain && row.state === "ready" ? "drain" : row.state, row.drain && row.state === "ready" ? row.drain : row.state);
      age.show(row.since);
      why.hidden = !row.why;
      why.classList.toggle("bad", row.state !== "ready" || Boolean(row.rejected ?? row.differs));
      say(why, row.why ? row.why[0].toUpperCase() + row.why.slice(1) : "");
      const heard = row.state !== "away" && row.state !== "gone";
      list.show(row.peers.map((peer) => ({ ...peer, heard })));
      sessions.hidden = row.peers.length === 0;
      const told = row.announced === null || row.announced === row.announces ? "" : `; ${number(row.announced)} of ${number(row.announces)} announced`;
      say(vips, row.vips.length === 0 ? "announces none" : row.vips.join(", ") + more(row) + told);
      const share = row.flow_capacity ? (row.flows ?? 0) / row.flow_capacity : 0;
      mark(meter, "value", share);
      say(fill, row.flow_capacity ? ` ${number(row.flows)} of ${number(row.flow_capacity)} (${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %)` : " not reported");
      const live = row.generation === null ? "nothing acknowledged" : number(row.generation);
      say(generation, row.generation === row.wanted ? `${live}, as wanted` : `${live}, wanted ${number(row.wanted)}`);
      say(counts, `${number(row.forwarded)} forwarded, ${number(row.dropped)} dropped, ${number(row.missed)} missed`);
      say(io, [row.mode ?? row.io, row.address, row.version && `version ${row.version}`].filter(Boolean).join(" · "));
      drain.show(row.drain !== null, { mux: row.name }, `${row.name} withdraws its VIPs; the other MUXes take its flows.`);
    },
  };
}

function more(row) {
  return row.announces > row.vips.length ? ` and ${row.announces - row.vips.length} more` : "";
}

function session(peer) {
  const state = badge();
  const words = el("span");
  return {
    element: el("li", {}, el("strong", {}, peer.name ?? "?"), " ", state.element, words),
    update(row) {
      if (!row.heard) state.show("unknown", `was ${row.state ?? "not known"}`);
      else if (row.state === "established") state.show("established");
      else state.show("down", row.state ?? "not known");
      say(words, [row.asn && `AS ${row.asn}`, row.heard && row.state === "established" && `${number(row.announced)} announced`, row.error].filter(Boolean).join(", "));
    },
  };
}
