// SPDX-License-Identifier: Apache-2.0
// Who is logged in, and what only they may do: drain and undrain.

import { el, say } from "./dom.js";

const find = (id) => document.getElementById(id);

let session = { who: null, csrf: null, expires: null };
let possible = false;
let waiting = null; // what to do once logged in

export async function startSession() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  }
  find("login").addEventListener("click", () => (session.who === null ? askToken(null) : logout()));
  find("login-form").addEventListener("submit", login);
  find("login-dialog").addEventListener("close", () => { find("token").value = ""; });
  find("ask-form").addEventListener("submit", perform);
  setInterval(() => session.expires !== null && session.expires <= Date.now() / 1000 && hold(null), 1000);
  const reply = await call("session").catch(() => null);
  if (reply?.ok) hold(reply.body);
}

/** Whether this manager lets anybody log in. */
export function allowLogin(allowed) {
  possible = allowed;
  showWho();
}

function hold(found) {
  session = found ?? { who: null, csrf: null, expires: null };
  showWho();
}

function showWho() {
  find("login").hidden = !possible;
  say(find("login"), session.who === null ? "Log in" : "Log out");
  say(find("who"), session.who === null ? "" : session.who.replace(/^operator:/, ""));
}

async function call(what, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Vipmux-Csrf": session.csrf ?? "" },
    body: JSON.stringify(body),
  };
  const reply = await fetch(`/v1/page/${what}`, { ...options, credentials: "same-origin", signal: AbortSignal.timeout(10000) });
  return { ok: reply.ok, status: reply.status, body: await reply.json() };
}

async function tried(what, body) {
  try {
    return await call(what, body);
  } catch {
    return { ok: false, status: 0, body: { error: "the manager does not answer" } };
  }
}

function askToken(then) {
  waiting = then;
  say(find("login-error"), "");
  find("login-dialog").showModal();
}

async function login(event) {
  event.preventDefault();
  const reply = await tried("login", { token: find("token").value });
  if (!reply.ok) {
    say(find("login-error"), reply.body.error);
    find("token").select();
    return;
  }
  hold(reply.body);
  find("login-dialog").close();
  const then = waiting;
  waiting = null;
  then?.();
}

async function logout() {
  await tried("logout", {});
  hold(null);
}

let order = null;

/** Asks whether it is meant, and orders it; logs in first where nobody is. */
function ask(title, text, action, body) {
  if (session.who === null) return askToken(() => ask(title, text, action, body));
  order = { title, text, action, body };
  say(find("ask-title"), title);
  say(find("ask-text"), text);
  say(find("ask-do"), action);
  say(find("ask-error"), "");
  find("ask-dialog").showModal();
}

async function perform(event) {
  event.preventDefault();
  const { title, text, action, body } = order;
  const reply = await tried("drain", body);
  if (reply.status === 401) {
    find("ask-dialog").close();
    hold(null);
    return ask(title, text, action, body);
  }
  if (!reply.ok) return say(find("ask-error"), reply.body.error);
  find("ask-dialog").close();
}

/** A button that drains or undrains; show(draining, body, words) changes it. */
export function drainButton(name) {
  let now = null;
  const element = el("button", { type: "button", onclick: () => ask(...now) });
  return {
    element,
    show(draining, body, promise) {
      const action = draining ? "Undrain" : "Drain";
      say(element, action);
      element.setAttribute("aria-label", `${action} ${name}`);
      element.hidden = !possible;
      now = [`${action} ${name}?`, draining ? "It takes new flows again." : promise, action, { ...body, drain: !draining }];
    },
  };
}
