// The workers, their slots and what runs on them; an administrator takes one out of service and back.

import { drain, getWorkers, isAdmin, undrain } from "./calls.js";
import { chip, el, list, showChip, table, text } from "./dom.js";
import { loop } from "./live.js";
import { ago, ranges } from "./words.js";

const SECONDS = 3;
const COLUMNS = [["State"], ["Worker"], ["Device"], ["Slots"], ["Runs"], ["Heard of"]];

export function workersView() {
  const said = el("p", { role: "status", class: "said" });
  const none = el("p", { class: "quiet", hidden: true }, "No worker was heard of within a day: start one with `python -m service.worker`.");
  const node = el("div", {}, el("h1", {}, "Workers"), said, none);
  let rows = null;

  async function act(name, request) {
    try {
      const worker = await request();
      text(said, `${name} is ${worker.state}`);
    } catch (error) {
      text(said, error.message);
    }
  }

  const start = (signal) => loop(signal, async () => {
    if (!rows) {
      const columns = (await isAdmin(signal)) ? [...COLUMNS, ["Service"]] : COLUMNS;
      rows = table("Heard of within a day", columns, (worker) => worker.id, (cells, worker) => make(cells, worker, act), fill);
      node.append(rows.node);
    }
    const workers = await getWorkers(signal);
    rows.show(workers);
    none.hidden = workers.length > 0;
    return SECONDS;
  });
  return { node, title: "Workers", start };
}

function make(cells, { id }, act) {
  const state = chip("");
  const slots = el("span", { class: "slots", "aria-hidden": "true" });
  const used = el("span");
  const runs = el("ul");
  cells[0].append(state);
  cells[3].append(slots, used);
  cells[4].append(runs);
  const button = (words, request) => el("button", { type: "button", click: () => act(id, request) }, words);
  const buttons = cells[6] && {
    checkpoint: button("Drain: checkpoint", () => drain(id, "checkpoint")),
    finish: button("Drain: finish", () => drain(id, "finish")),
    back: button("Undrain", () => undrain(id)),
  };
  cells[6]?.append(...Object.values(buttons));
  const showSlots = list(slots, (slot) => slot.index, () => {
    const node = el("i");
    return { node, show: (slot) => node.classList.toggle("used", slot.isUsed) };
  });
  const showRuns = list(runs, (held) => `${held.run_id} ${held.attempt}`, (held) => {
    const where = el("span");
    const link = el("a", { href: `#/runs/${encodeURIComponent(held.run_id)}` }, held.run_id);
    return { node: el("li", {}, link, where), show: (newer) => text(where, ` slots ${ranges(newer.slots)}`) };
  });
  return { state, used, showSlots, showRuns, buttons };
}

function fill(cells, worker, { state, used, showSlots, showRuns, buttons }) {
  const held = new Set(worker.holds.flatMap((holding) => holding.slots));
  showChip(state, worker.state);
  text(cells[1], worker.id === worker.host ? worker.id : `${worker.id} on ${worker.host}`);
  text(cells[2], worker.device);
  showSlots(Array.from({ length: worker.slots }, (_, index) => ({ index, isUsed: held.has(index) })));
  text(used, `${held.size} of ${worker.slots} used`);
  showRuns(worker.holds);
  text(cells[5], worker.alive ? "now" : ago(worker.last_seen));
  if (buttons) {
    buttons.back.hidden = !worker.drain;
    buttons.finish.hidden = buttons.checkpoint.hidden = Boolean(worker.drain);
  }
}
