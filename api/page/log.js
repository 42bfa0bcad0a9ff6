// The end of a log, as it grows.

import { followLog, readLog } from "./calls.js";
import { el, list, text } from "./dom.js";
import { loop } from "./live.js";
import { bytes } from "./words.js";

export const HELD = ["starting", "running", "preempting", "pausing", "cancelling"]; // statuses in which an attempt goes on
const TAIL_BYTES = 64 * 1024;
const MOST_CHARACTERS = 500000;
const PAUSE_SECONDS = 3;
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]/g; // a terminal's colours

// show(files, run) with each news of them; start(signal) follows the log that is chosen: the first rank's of the newest attempt, unless
// a person chose another.
export function logPart(id) {
  const options = el("select", { id: "log", change: () => choose(files.find((file) => nameOf(file) === options.value), true) });
  const said = el("span", { class: "quiet", role: "status" });
  const shown = el("pre", { class: "log", tabindex: 0, role: "region", "aria-label": "Log" });
  const choice = el("p", {}, el("label", { for: "log" }, "Attempt and rank"), " ", options, " ", said);
  const node = el("section", { hidden: true }, el("h2", {}, "Log"), choice, shown);
  const showOptions = list(options, nameOf, (file) => {
    const option = el("option", { value: nameOf(file) });
    return { node: option, show: (newer) => text(option, `attempt ${newer.attempt}, ${newer.name} (${bytes(newer.size)})`) };
  });
  let files = [], run = null, chosen = null, byHand = false, offset = 0, seen = null, reading = new AbortController();

  function show(newer, newerRun) {
    [files, run] = [newer, newerRun];
    showOptions([...files].sort((a, b) => b.attempt - a.attempt || a.name.localeCompare(b.name, "en", { numeric: true })));
    node.hidden = files.length === 0;
    const first = files.find((file) => file.attempt === run.attempt && file.name === "rank-0.log");
    if (first && !byHand && nameOf(first) !== chosen?.key) choose(first, false);
  }

  function choose(file, isHand) {
    byHand ||= isHand;
    chosen = { attempt: file.attempt, name: file.name, key: nameOf(file) };
    options.value = chosen.key;
    offset = Math.max(0, file.size - TAIL_BYTES);
    shown.replaceChildren(offset ? `[${bytes(offset)} before this are left out here]\n` : "");
    reading.abort();
    if (seen && !seen.aborted) follow(seen).catch(stopped);
  }

  function append(words) {
    const atEnd = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
    shown.append(words.replace(ESCAPES, "").replace(/\r\n?/g, "\n"));
    while (shown.textContent.length > MOST_CHARACTERS && shown.childNodes.length > 1) shown.firstChild.remove();
    if (atEnd) shown.scrollTop = shown.scrollHeight;
  }

  async function follow(signal) {
    seen = signal;
    if (!chosen) return;
    reading = new AbortController();
    const both = AbortSignal.any([signal, reading.signal]);
    const decoder = new TextDecoder();
    await loop(both, async () => {
      for await (const piece of followLog(id, { ...chosen, offset }, both)) {
        offset += piece.length;
        append(decoder.decode(piece, { stream: true }));
      }
      // It ends with its attempt, after an hour, and where the middle of a long log is not kept.
      const { piece, next } = await readLog(id, { ...chosen, offset }, both);
      if (piece.length) append(decoder.decode(piece, { stream: true }));
      const isOver = next === offset && (chosen.attempt < run.attempt || !HELD.includes(run.status));
      offset = next;
      return isOver ? null : PAUSE_SECONDS;
    });
  }

  function stopped(error) {
    if (error.name !== "AbortError") text(said, error.message);
  }

  return { node, show, start: (signal) => follow(signal).catch(stopped) };
}

function nameOf({ attempt, name }) {
  return `${attempt}/${name}`;
}
