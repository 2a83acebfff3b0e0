// SPDX-License-Identifier: Apache-2.0
// What happened, the latest first.

import { el, List, say } from "./dom.js";
import { clockText, icon } from "./words.js";

export function events(container) {
  const list = new List(container, (row) => row.id, eventLine);
  return (page) => list.show(page.events);
}

export function eventLine(event) {
  const time = el("time", { datetime: new Date(event.at * 1000).toISOString() });
  const subject = event.subject.match(/^(?:service|backend) ([^/]+)/);
  const name = subject ? el("a", { href: `#/service/${encodeURIComponent(subject[1])}` }, event.subject) : el("strong", {}, event.subject);
  const mark = el("span", { class: "mark", "data-level": event.bad ? "bad" : "idle" }, event.bad ? icon("down", 10) : null);
  if (event.bad) mark.append(el("span", { class: "hidden" }, "bad: "));
  return {
    element: el("li", {}, time, mark, el("div", {}, name, " ", event.text)),
    update: () => say(time, clockText(event.at)),
  };
}
