// SPDX-License-Identifier: Apache-2.0
// The fleet as a picture: routers, MUXes, hosts. Few hosts are drawn with their names, many as small cells, those with
// trouble first; how many there are of a kind is written beside them.

import { el, svg } from "./dom.js";
import { icon, levelOf } from "./words.js";

const NODE = { width: 132, height: 44, gap: 16 };
const WIDE = 620; // narrower: from top to bottom

export function topology(container) {
  let shown = "";
  let latest = null;
  const draw = () => latest && container.replaceChildren(picture(latest, container.clientWidth || 600), words(latest));
  new ResizeObserver(() => draw()).observe(container);
  return (page) => {
    const next = { routers: routersOf(page.muxes), muxes: page.muxes, hosts: hostsOf(page.hosts) };
    const key = JSON.stringify([next.routers, next.muxes.map((mux) => [mux.name, stateOf(mux), mux.why, mux.announces, mux.peers.map((peer) => peer.state)]), next.hosts]);
    latest = next;
    if (key !== shown) {
      shown = key;
      draw();
    }
  };
}

const stateOf = (mux) => (mux.drain && mux.state === "ready" ? "drain" : mux.state);

function routersOf(muxes) {
  const found = new Map();
  for (const mux of muxes) {
    for (const peer of mux.peers) {
      const router = found.get(peer.address) ?? { name: peer.name ?? "?", address: peer.address, up: 0, of: 0 };
      router.of += 1;
      router.up += peer.state === "established" && mux.state !== "away" && mux.state !== "gone" ? 1 : 0;
      found.set(peer.address, router);
    }
  }
  return [...found.values()];
}

/** With the state that counts most: that of the agent, or of its backends. */
function hostsOf(hosts) {
  const rank = { bad: 0, warn: 1, idle: 2, well: 3 };
  return hosts
    .map((host) => {
      const count = Object.values(host.backends).reduce((sum, one) => sum + one, 0);
      const up = host.backends.up ?? 0;
      let state = host.state;
      if (state === "ready" && host.backends.down) state = "down";
      else if (state === "ready" && host.backends.panic) state = "panic";
      else if (state === "ready" && up < count) state = host.backends.drain ? "drain" : "unknown";
      return { name: host.name, state, text: count === 0 ? "no backends" : `${up} of ${count} up`, why: host.why ? `; ${host.why}` : "" };
    })
    .sort((a, b) => rank[levelOf(a.state)] - rank[levelOf(b.state)] || a.name.localeCompare(b.name, "en", { numeric: true }));
}

function picture(found, width) {
  const wide = width >= WIDE;
  const root = svg("svg", { class: "topology", role: "img", "aria-label": "Topology; the list below says the same" });
  const left = wide ? 150 : 0;
  const rest = wide ? width - 2 * (NODE.width + 70) : width;
  const hosts = hostCells(found.hosts, rest);
  const column = (count) => count * (NODE.height + NODE.gap) - NODE.gap;
  const routers = found.routers.length > 0 ? found.routers : [{ name: "no router", up: 0, of: 0 }];
  let height;
  let routerAt;
  let muxAt;
  let hostsAt;
  if (wide) {
    height = Math.max(column(routers.length), column(found.muxes.length), hosts.height) + 8;
    const middle = (count) => (height - column(count)) / 2;
    routerAt = (n) => [0, middle(routers.length) + n * (NODE.height + NODE.gap)];
    muxAt = (n) => [NODE.width + 70, middle(found.muxes.length) + n * (NODE.height + NODE.gap)];
    hostsAt = [2 * (NODE.width + 70), (height - hosts.height) / 2];
  } else {
    const across = (n, count) => (width - Math.min(width, count * (NODE.width + 8))) / 2 + n * (NODE.width + 8);
    const perRow = Math.max(1, Math.floor((width + 8) / (NODE.width + 8)));
    const rows = (count) => Math.ceil(count / perRow);
    const place = (n, count, y) => [across(n % perRow, Math.min(perRow, count)), y + Math.floor(n / perRow) * (NODE.height + 8)];
    const muxY = rows(routers.length) * (NODE.height + 8) + 34;
    const hostY = muxY + rows(found.muxes.length) * (NODE.height + 8) + 34;
    routerAt = (n) => place(n, routers.length, 0);
    muxAt = (n) => place(n, found.muxes.length, muxY);
    hostsAt = [0, hostY];
    height = hostY + hosts.height + 4;
  }
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.setAttribute("width", width);
  root.setAttribute("height", height);
  const lines = svg("g");
  const boxes = svg("g");
  routers.forEach((router, r) => {
    const state = router.of === 0 ? "off" : router.up === router.of ? "up" : router.up > 0 ? "degraded" : "down";
    boxes.append(box(routerAt(r), router.name, router.of === 0 ? "no BGP" : `${router.up} of ${router.of} sessions`, state));
    found.muxes.forEach((mux, m) => {
      const peer = mux.peers.find((item) => item.address === router.address);
      if (peer) lines.append(line(routerAt(r), muxAt(m), wide, peer.state === "established" && !["away", "gone"].includes(mux.state)));
    });
  });
  found.muxes.forEach((mux, m) => {
    boxes.append(box(muxAt(m), mux.name, `${stateOf(mux)}, ${mux.announces} VIPs`, stateOf(mux), mux.why ? `; ${mux.why}` : ""));
    const [x, y] = muxAt(m);
    const target = wide ? [hostsAt[0], hostsAt[1] + hosts.height / 2 - NODE.height / 2] : [width / 2 - NODE.width / 2, hostsAt[1]];
    if (found.hosts.length > 0) lines.append(line([x, y], target, wide, !["away", "gone"].includes(mux.state)));
  });
  root.append(lines, boxes, svg("g", { transform: `translate(${hostsAt[0]} ${hostsAt[1]})` }, ...hosts.parts));
  return root;
}

function line([x1, y1], [x2, y2], wide, up) {
  const from = wide ? [x1 + NODE.width, y1 + NODE.height / 2] : [x1 + NODE.width / 2, y1 + NODE.height];
  const to = wide ? [x2, y2 + NODE.height / 2] : [x2 + NODE.width / 2, y2];
  const bend = wide ? [(from[0] + to[0]) / 2, from[1], (from[0] + to[0]) / 2, to[1]] : [from[0], (from[1] + to[1]) / 2, to[0], (from[1] + to[1]) / 2];
  return svg("path", { d: `M${from} C${bend} ${to}`, class: up ? "edge" : "edge cut" });
}

function box([x, y], name, text, state, why = "", width = NODE.width) {
  const shape = icon(state);
  shape.setAttribute("x", 10);
  shape.setAttribute("y", 10);
  const fits = Math.floor((width - 34) / 7.3);
  const title = name.length > fits ? `${name.slice(0, fits - 1)}…` : name;
  return svg(
    "g", { transform: `translate(${x} ${y})`, class: "node", "data-level": levelOf(state) },
    svg("title", {}, `${name}: ${state}, ${text}${why}`),
    svg("rect", { width, height: NODE.height, rx: 6 }), shape,
    svg("text", { x: 28, y: 20, class: "name" }, title), svg("text", { x: 10, y: 36, class: "text" }, text),
  );
}

const NAMED = 18;

function hostCells(hosts, width) {
  const named = hosts.length <= NAMED ? hosts : hosts.filter((host) => levelOf(host.state) !== "well").slice(0, NAMED);
  const others = hosts.slice(named.length);
  const perRow = Math.max(1, Math.floor((width + 8) / (NODE.width + 8)));
  const parts = named.map((host, n) => box([(n % perRow) * (NODE.width + 8), Math.floor(n / perRow) * (NODE.height + 8)], host.name, host.text, host.state, host.why));
  let y = Math.ceil(named.length / perRow) * (NODE.height + 8);
  if (others.length > 0) {
    const cells = Math.max(1, Math.floor(width / 20));
    parts.push(svg("text", { x: 0, y: y + 14, class: "text" }, `${others.length} ${named.length > 0 ? "more " : ""}hosts${others.every((host) => levelOf(host.state) === "well") ? ", all well" : ""}`));
    y += 24;
    others.forEach((host, n) => {
      const shape = icon(host.state);
      shape.setAttribute("x", (n % cells) * 20 + 2);
      shape.setAttribute("y", y + Math.floor(n / cells) * 20 + 2);
      parts.push(svg("g", { class: "node small", "data-level": levelOf(host.state) }, svg("title", {}, `${host.name}: ${host.state}, ${host.text}${host.why}`), shape));
    });
    y += Math.ceil(others.length / cells) * 20 + 4;
  }
  return { parts, height: Math.max(NODE.height, y - 4) };
}

/** The picture in words, for who does not see it. */
function words(found) {
  const item = (text) => el("li", {}, text);
  const trouble = found.hosts.filter((host) => levelOf(host.state) !== "well").slice(0, 50);
  return el(
    "ul", { class: "hidden" },
    ...found.routers.map((router) => item(`Router ${router.name}: ${router.up} of ${router.of} sessions established`)),
    ...found.muxes.map((mux) => item(`MUX ${mux.name}: ${stateOf(mux)}, ${mux.announces} VIPs`)),
    item(`${found.hosts.length} hosts, ${found.hosts.filter((host) => levelOf(host.state) === "well").length} of them well`),
    ...trouble.map((host) => item(`Host ${host.name}: ${host.state}, ${host.text}${host.why}`)),
  );
}
