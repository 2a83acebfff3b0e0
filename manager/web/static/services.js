// SPDX-License-Identifier: Apache-2.0
// The table of services, problems first. The manager filters and pages, so ten thousand are as quick as ten.

import { cell, el, List, say, table } from "./dom.js";
import { badge, number, short } from "./words.js";

const COLUMNS = [["State", "state"], ["Service", "name"], ["VIP"], ["Healthy", "number"], ["Announced by", "extra"], ["Why", "reason"], ["Packets/s", "number"], ["Flows", "number"]];
export const LIMIT = 25;

const find = (id) => document.getElementById(id);

/** Returns show(page); ask(what) is called with another q, state or offset. */
export function services(ask) {
  const { element, body } = table("Services", COLUMNS);
  find("services-table").append(element);
  const list = new List(body, (row) => row.name, line);
  let offset = 0;
  let timer;
  const again = (place) => {
    offset = Math.max(0, place);
    ask({ q: find("search").value, state: find("state").value, offset });
  };
  find("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => again(0), 200);
  });
  find("state").addEventListener("change", () => again(0));
  find("filter").addEventListener("submit", (event) => { event.preventDefault(); again(0); });
  find("previous").addEventListener("click", () => again(offset - LIMIT));
  find("next").addEventListener("click", () => again(offset + LIMIT));
  return (page) => {
    list.show(page.services);
    const last = offset + page.services.length;
    const of = page.matched.toLocaleString("en");
    say(find("matched"), page.matched === 0 ? "No service is like that." : `${offset + 1}–${last} of ${of}`);
    find("previous").disabled = offset === 0;
    find("next").disabled = last >= page.matched;
    find("previous").hidden = find("next").hidden = page.matched <= LIMIT && offset === 0;
    if (page.services.length === 0 && offset > 0 && page.matched > 0) again(Math.floor((page.matched - 1) / LIMIT) * LIMIT);
  };
}

function line(service) {
  const state = badge();
  const [vip, healthy, by, why, pps, flows] = [1, 2, 3, 4, 5, 6].map(() => el("span"));
  const link = el("a", { href: `#/service/${encodeURIComponent(service.name)}` }, service.name);
  const contents = [state.element, link, vip, healthy, by, why, pps, flows];
  return {
    element: el("tr", { role: "row" }, ...contents.map((item, index) => cell(COLUMNS[index], item))),
    update(row) {
      state.show(row.state);
      say(vip, `${row.vip} ${row.protocol}/${row.port === "0" ? "any" : row.port}`);
      say(healthy, `${row.healthy} of ${row.backends}`);
      const some = row.announced_by.length > 0 ? names(row.announced_by) : "nobody";
      const all = row.wanted_by.every((mux) => row.announced_by.includes(mux));
      say(by, all ? some : `${some}; ${names(row.wanted_by)} should`);
      say(why, row.why ?? "");
      say(pps, short(row.pps));
      say(flows, number(row.flows));
    },
  };
}

function names(found) {
  return found.length <= 3 ? found.join(", ") : `${found.length} MUXes`;
}
