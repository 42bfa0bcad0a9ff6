// What goes on while a view is looked at: loops that outlive an API that is away, and the sentence that says so.

import { Away } from "./calls.js";
import { text } from "./dom.js";

const FIRST_SECONDS = 1;
const LONGEST_SECONDS = 30;

const away = new Map(); // by loop: what it was told
const impatience = new EventTarget();

export function setUp() {
  const now = () => impatience.dispatchEvent(new Event("now"));
  document.getElementById("retry").addEventListener("click", now);
  window.addEventListener("online", now);
}

function announce() {
  document.getElementById("banner").hidden = away.size === 0;
  text(document.getElementById("banner-text"), [...away.values()].at(-1));
}

// Calls work() again and again until it returns null: it returns the seconds until it is to be called again. While the API is away
// it waits longer and longer. Raises what the API refuses, and nothing once `signal` is aborted.
export async function loop(signal, work) {
  const me = Symbol("loop");
  let failures = 0;
  try {
    while (!signal.aborted) {
      let seconds;
      try {
        seconds = await work();
        failures = 0;
        away.delete(me);
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Away)) throw error;
        seconds = Math.max(error.retryAfter, Math.min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** failures++)) * (0.75 + Math.random() / 2);
        away.set(me, `${error.message}: what is shown may be old; trying again in ${Math.ceil(seconds)} s`);
      }
      if (!signal.aborted) announce();
      if (seconds === null) return;
      await pause(seconds, signal);
    }
  } finally {
    away.delete(me);
    announce();
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      impatience.removeEventListener("now", over);
      resolve();
    };
    const timer = setTimeout(over, seconds * 1000);
    signal.addEventListener("abort", over);
    impatience.addEventListener("now", over);
    if (signal.aborted) over();
  });
}
