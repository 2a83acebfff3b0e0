// SPDX-License-Identifier: Apache-2.0
// Starts the page: what the address asks for, what the manager tells, and which part shows it.

import { charts } from "./chart.js";
import { el, List, say } from "./dom.js";
import { events } from "./events.js";
import { muxes } from "./muxes.js";
import { service } from "./service.js";
import { LIMIT, services } from "./services.js";
import { allowLogin, startSession } from "./session.js";
import { Stream } from "./stream.js";
import { topology } from "./topology.js";
import { icon, setClock, since } from "./words.js";

const find = (id) => document.getElementById(id);
const asked = { q: "", state: "", offset: 0 };

const stream = new Stream(show, link);
const showCharts = charts(find("charts"));
const showService = service(find("service"));
const parts = [
  services((what) => { Object.assign(asked, what); ask(); }),
  muxes(find("mux-cards")), topology(find("drawing")), events(find("event-list")),
];
const problems = new List(find("problems"), (row) => `${row.subject} ${row.text}`, problem);

/** The service that the address names, or null. */
function named() {
  const match = location.hash.match(/^#\/service\/(.+)$/);
  try {
    return match ? decodeURIComponent(match[1]) : null;
  } catch {
    return null;
  }
}

function ask() {
  const query = new URLSearchParams({ ...asked, limit: LIMIT });
  if (named() !== null) query.set("service", named());
  stream.ask(query);
}

let shownName;

function route() {
  const name = named();
  const part = /^#(services|muxes|topology|events)$/.exec(location.hash);
  find("service").hidden = name === null;
  find("overview").hidden = name !== null;
  if (part) find(`${part[1]}-title`).focus();
  if (name === shownName) return;
  if (shownName !== undefined) scrollTo(0, 0);
  shownName = name;
  if (name !== null) {
    showService(name, undefined);
    find("service-title").focus();
  }
  ask();
}

function show(page) {
  setClock(page.at);
  say(find("manager"), page.manager.name);
  allowLogin(page.manager.login);
  showVerdict(page.summary);
  const name = named();
  if (name === null) {
    showCharts(page.history);
    parts.forEach((part) => part(page));
  } else if (page.service === null || page.service.service.name === name) {
    showService(name, page.service);
  }
}

let verdictLevel;

function showVerdict(summary) {
  const heading = find("verdict-text");
  find("verdict").dataset.level = summary.level;
  const text = `${summary.text}${summary.level === "bad" || summary.level === "warn" ? "" : "."}`;
  if (heading.textContent !== text || verdictLevel !== summary.level) {
    heading.replaceChildren(icon(summary.level, 18), text);
    verdictLevel = summary.level;
    document.title = `${{ bad: "✕ ", warn: "▲ " }[summary.level] ?? ""}${summary.text} – vipmux`;
  }
  const more = { subject: "", text: `… and ${summary.more_problems} more`, level: "idle", since: null, service: null };
  problems.show(summary.more_problems > 0 ? [...summary.problems, more] : summary.problems);
}

function problem(item) {
  const age = since();
  const subject = item.service === null ? el("strong", {}, item.subject) : el("a", { href: `#/service/${encodeURIComponent(item.service)}` }, item.subject);
  return {
    element: el("li", { "data-level": item.level }, item.level === "idle" ? null : icon(item.level), el("div", {}, subject, ` ${item.text} `, age.element)),
    update: (row) => age.show(row.since),
  };
}

let lost = null;

function link(lostSince) {
  lost = lostSince;
  document.body.dataset.link = lost === null ? "live" : "lost";
  showLink();
}

function showLink() {
  const time = lost === null ? "" : new Date(lost).toLocaleTimeString("en-GB");
  say(find("link"), lost === null ? "Live" : `Connection lost at ${time}; trying again`);
}

addEventListener("hashchange", route);
link(null);
startSession();
route();
