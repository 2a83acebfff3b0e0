// SPDX-License-Identifier: Apache-2.0
// What the manager knows, kept up to date by server-sent events. Says when it is cut off, and comes back by itself.

const SILENT = 6000; // the manager says something every second
const RETRY = [500, 1000, 2000, 3000];
const KEYS = { services: "name", muxes: "name", hosts: "name", events: "id" };

export class Stream {
  /** onpage(page): something is another; onlink(lostSince): null, or since when nothing was heard (milliseconds). */
  constructor(onpage, onlink) {
    this.onpage = onpage;
    this.onlink = onlink;
    this.page = null;
    this.query = "";
    this.tries = 0;
    this.lost = null;
    setInterval(() => this.watch(), 1000);
    addEventListener("online", () => this.open());
  }

  /** Shows what the query asks for from now on. */
  ask(query) {
    this.query = query;
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    this.source?.close();
    const source = new EventSource(`/v1/page/stream?${this.query}`);
    this.source = source;
    this.heard = Date.now();
    source.addEventListener("whole", (event) => this.take(source, JSON.parse(event.data)));
    source.addEventListener("change", (event) => this.take(source, apply(this.page, JSON.parse(event.data))));
    source.addEventListener("error", () => source === this.source && this.failed());
  }

  take(source, page) {
    if (source !== this.source) return;
    this.heard = Date.now();
    this.tries = 0;
    this.page = page;
    if (this.lost !== null) this.onlink((this.lost = null));
    this.onpage(page);
  }

  watch() {
    if (this.source?.readyState !== EventSource.CLOSED && Date.now() - this.heard > SILENT) this.failed();
  }

  failed() {
    this.source.close();
    if (this.lost === null) this.lost = this.heard;
    this.onlink(this.lost);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), RETRY[Math.min(this.tries++, RETRY.length - 1)]);
  }
}

/** The page after a change; what did not change is the same object. */
function apply(page, change) {
  const next = { ...page, ...change.set, at: change.at };
  for (const [section, part] of Object.entries(change.rows)) {
    const key = KEYS[section];
    const rows = new Map(page[section].map((row) => [row[key], row]));
    for (const row of part.set) rows.set(row[key], row);
    next[section] = (part.order ?? page[section].map((row) => row[key])).map((name) => rows.get(name));
  }
  if (change.history) next.history = join(page.history, change.history);
  return next;
}

const POINTS = 150;

function join(old, more) {
  const ends = old.first + old.points * old.step;
  if (old.points === 0 || more.first !== ends) return old.points === 0 || more.first > ends ? more : old;
  const cut = Math.max(0, old.points + more.points - POINTS);
  const names = new Set([...Object.keys(old.muxes), ...Object.keys(more.muxes)]);
  const none = (length) => Array(length).fill(null);
  const both = (a, b) => Object.fromEntries(
    ["pps", "dropped", "flows"].map((field) => [
      field, [...(a?.[field] ?? none(old.points)), ...(b?.[field] ?? none(more.points))].slice(cut),
    ]),
  );
  return {
    step: old.step,
    first: old.first + cut * old.step,
    points: old.points + more.points - cut,
    total: both(old.total, more.total),
    muxes: Object.fromEntries([...names].sort().map((name) => [name, both(old.muxes[name], more.muxes[name])])),
  };
}
