// Which view is shown, and with which key. A view is {node, title, start(signal)}: start returns when the view has nothing more to follow.

import { key } from "./calls.js";
import { el } from "./dom.js";
import { setUp } from "./live.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";
import { workersView } from "./workers.js";

const KEY_FORM = "mw_[A-Za-z0-9_\\-]{20,}";

const main = document.getElementById("main");
let view;
let running = new AbortController();

function route() {
  const [place, query = ""] = location.hash.slice(1).split("?");
  const [, first, id] = place.split("/");
  if (first === "runs" && id) return runView(decodeURIComponent(id));
  if (first === "workers") return workersView();
  return runsView(new URLSearchParams(query));
}

function show(next) {
  view = next;
  document.title = `${view.title} - millionway`;
  main.replaceChildren(view.node);
  document.getElementById("forget").hidden = !key.get();
  for (const link of document.querySelectorAll("nav a")) {
    if (location.hash.startsWith(link.getAttribute("href"))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  start();
}

// A tab that nobody looks at asks for nothing, and leaves its connections, of which a browser has six, to the others.
async function start() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  if (document.hidden) return;
  try {
    await view.start(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) signOut(error.message);
    else main.prepend(el("p", { class: "error", role: "alert" }, error.message));
  }
}

function signOut(why) {
  key.forget();
  show(keyView(why));
}

function keyView(why = "") {
  const input = el("input", { id: "key", type: "password", required: true, pattern: KEY_FORM, autocomplete: "off", spellcheck: "false" });
  const submit = (event) => {
    event.preventDefault();
    key.set(input.value.trim());
    show(route());
  };
  const node = el("form", { class: "key", submit },
    el("h1", {}, "API key"),
    el("p", { class: "error", role: "alert" }, why),
    el("label", { for: "key" }, "The key that starts with mw_"),
    input,
    el("button", {}, "Look"),
    el("p", { class: "quiet" }, "Kept in this tab until it is closed. ", el("code", {}, "millionway keys create"),
      " makes one; that of a stack on this machine is in ",
      el("code", {}, ".millionway/keys/admin.key"), "."));
  return { node, title: "API key", start: () => input.focus() };
}

window.addEventListener("hashchange", () => {
  if (location.hash === "#main") return; // the link that skips the header
  show(key.get() ? route() : keyView());
  main.focus();
});
document.addEventListener("visibilitychange", start);
document.getElementById("forget").addEventListener("click", () => signOut(""));
setUp();
show(key.get() ? route() : keyView());
