// The list of runs.

import { listRuns } from "./calls.js";
import { chip, el, set, showChip, table, text } from "./dom.js";
import { loop } from "./live.js";
import { duration, integer, number, percent } from "./words.js";

export const STATUSES = [
  "queued", "starting", "running", "preempting", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled",
];
const SECONDS = 3;

const COLUMNS = [
  ["Status"], ["Run"], ["Owner"], ["Priority", "number"], ["Progress"], ["Loss", "number"], ["Images/s", "number"],
  ["Time left"], ["kNN", "number"], ["Why", "why"],
];

// `query`: status, label (several), cursor, as they stand in the page's address.
export function runsView(query) {
  const filter = { status: query.get("status"), label: query.getAll("label"), cursor: query.get("cursor") };
  const rows = table("Runs, newest first", COLUMNS, (run) => run.id, make, fill);
  const none = el("p", { class: "quiet", hidden: true }, "No runs here.");
  const older = el("a", { hidden: true }, "Older runs");
  const newest = el("a", { href: place({ ...filter, cursor: null }), ...(filter.cursor ? {} : { hidden: true }) }, "Newest runs");
  const node = el("div", {}, el("h1", {}, "Runs"), filterForm(filter), rows.node, none, el("p", { class: "pages" }, newest, " ", older));

  const start = (signal) => loop(signal, async () => {
    const page = await listRuns(filter, signal);
    rows.show(page.runs);
    none.hidden = page.runs.length > 0;
    older.hidden = !page.has_more;
    set(older, "href", place({ ...filter, cursor: page.next_cursor }));
    return SECONDS;
  });
  return { node, title: "Runs", start };
}

function place({ status, label, cursor }) {
  const query = new URLSearchParams(label.map((pair) => ["label", pair]));
  if (status) query.set("status", status);
  if (cursor) query.set("cursor", cursor);
  return query.size ? `#/runs?${query}` : "#/runs";
}

function filterForm({ status, label }) {
  const options = ["", ...STATUSES].map((one) => el("option", { value: one, selected: one === (status ?? "") }, one || "any"));
  const statuses = el("select", { id: "status", change: apply }, ...options);
  const labels = el("input", { id: "labels", value: label.join(", "), placeholder: "team=vision, ...", autocomplete: "off" });
  function apply(event) {
    event.preventDefault();
    const pairs = labels.value.split(",").map((pair) => pair.trim()).filter(Boolean);
    location.hash = place({ status: statuses.value, label: pairs, cursor: null });
  }
  return el("form", { class: "filter", submit: apply },
    el("label", { for: "status" }, "Status"), statuses,
    el("label", { for: "labels" }, "Labels"), labels,
    el("button", {}, "Filter"));
}

function make(cells, run) {
  const status = chip(run.status);
  const name = el("a", { href: `#/runs/${encodeURIComponent(run.id)}` });
  const bar = el("progress", { "aria-label": "Steps done" });
  const steps = el("span");
  cells[0].append(status);
  cells[1].append(name, el("small", {}, run.id));
  cells[4].append(bar, steps);
  return { status, name, bar, steps };
}

function fill(cells, run, { status, name, bar, steps }) {
  const progress = run.progress;
  showChip(status, run.status);
  text(name, run.name || run.id);
  text(cells[2], run.owner);
  text(cells[3], run.priority);
  showProgress(bar, steps, run);
  cells[4].classList.toggle("empty", !progress && !steps.textContent);
  text(cells[5], number(progress?.loss));
  text(cells[6], run.status === "running" ? number(progress?.images_per_second) : "");
  text(cells[7], run.status === "running" ? duration(progress?.eta_seconds) : "");
  text(cells[8], percent(run.knn));
  text(cells[9], why(run));
}

export function showProgress(bar, steps, { progress, phase, status }) {
  bar.hidden = !progress;
  if (progress) {
    set(bar, "max", progress.num_steps);
    set(bar, "value", progress.step);
    text(steps, `${integer(progress.step)} / ${integer(progress.num_steps)}`);
  } else {
    text(steps, status === "starting" || status === "running" ? phase : "");
  }
}

function why({ status, reason, wait, warnings }) {
  if (status === "queued" && wait?.reasons.length) {
    const [first, ...others] = wait.reasons;
    return others.length ? `${first.message} (and ${others.length} more)` : first.message;
  }
  if (status === "running") return warnings.at(-1) ?? "";
  return status === "succeeded" ? "" : reason;
}
