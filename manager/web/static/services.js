// SPDX-License-Identifier: Apache-2.0
// The table of services, problems first. The manager filters and pages, so ten thousand are as quick as ten.

import { say } from "./dom.js";
import { rowTable } from "./table.js";

export const LIMIT = 25;

const find = (id) => document.getElementById(id);

/** Returns show(page); ask(what) is called with another q, state or offset. */
export function services(ask) {
  const list = rowTable("Services", "services", (row) => row.name);
  find("services-table").append(list.element);
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
