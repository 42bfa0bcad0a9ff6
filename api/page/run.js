// One run: what it does and why, and what a person may ask of it. Its events say what to fetch anew.

import {
  cancel, events, getAttempts, getCheckpoints, getHistory, getLogIndex, getMetrics, getRun, kill, pause, resume,
} from "./calls.js";
import { chart } from "./charts.js";
import { chip, el, list, showChip, text } from "./dom.js";
import { loop } from "./live.js";
import { logPart } from "./log.js";
import { attemptsPart, checkpointsPart, exportPart, factsPart, historyPart, waitPart } from "./run_parts.js";
import { showProgress } from "./runs.js";
import { duration, number, percent } from "./words.js";

export const POSSIBLE = {
  pause: ["queued", "starting", "running", "preempting"],
  resume: ["paused"],
  cancel: ["queued", "starting", "running", "preempting", "pausing", "paused"],
  kill: ["queued", "starting", "running", "preempting", "pausing", "paused", "cancelling"],
};
export const TERMINAL = ["succeeded", "failed", "cancelled"];
const SURE = {
  cancel: "Stop this run for good, with a checkpoint?",
  kill: "Stop this run for good, at once? What it did since its last checkpoint is lost.",
};
const REQUESTS = { pause, resume, cancel, kill };
const SERIES = ["loss", "learning_rate", "images_per_second", "knn"];
const LOOK_SECONDS = 1;
const RUN_SECONDS = 5; // what a run waits for changes without an event, and so do its logs
const CURVES_SECONDS = 5;
const AFTER = { // by kind of event: what may be different now, beside the run
  transition: ["history", "attempts", "logs"],
  progress: ["curves"],
  evaluated: ["curves", "checkpoints"],
  checkpointed: ["checkpoints"],
};
const ALL = ["run", "history", "attempts", "checkpoints", "curves", "logs"];

export function runView(id) {
  const due = new Set(ALL);
  const fetchedAt = new Map();
  const head = headPart(id, due);
  const wait = waitPart(), curves = curvesPart(), log = logPart(id);
  const attempts = attemptsPart(), history = historyPart(), facts = factsPart();
  const checkpoints = checkpointsPart(id, () => due.add("checkpoints")), exported = exportPart(id);
  const parts = [head, wait, curves, log, attempts, checkpoints, exported, history, facts];
  const node = el("article", {}, ...parts.map((part) => part.node));
  let run = null, after = null;

  const fetches = {
    run: async (signal) => {
      run = await getRun(id, signal);
      for (const part of [head, wait, exported, facts]) part.show(run);
    },
    history: async (signal) => history.show(await getHistory(id, signal)),
    attempts: async (signal) => attempts.show(await getAttempts(id, signal)),
    checkpoints: async (signal) => checkpoints.show(await getCheckpoints(id, signal)),
    curves: async (signal) => curves.show((await getMetrics(id, SERIES, signal)).series, run),
    logs: async (signal) => log.show(await getLogIndex(id, signal), run),
  };

  async function fetchDue(signal) {
    const isOld = (what, seconds) => performance.now() - (fetchedAt.get(what) ?? -Infinity) > seconds * 1000;
    if (!TERMINAL.includes(run?.status) && isOld("run", RUN_SECONDS)) due.add("run").add("logs");
    const now = ALL.filter((what) => due.has(what) && (what !== "curves" || isOld(what, CURVES_SECONDS)));
    for (const what of now) { // the run first: the others are shown with it
      due.delete(what);
      try {
        await fetches[what](signal);
        fetchedAt.set(what, performance.now());
      } catch (error) {
        due.add(what);
        throw error;
      }
    }
    return LOOK_SECONDS;
  }

  async function listen(signal) {
    for await (const event of events(id, after, signal)) {
      after = event.id ?? after;
      if (event.event === "end") {
        ALL.forEach((what) => due.add(what));
        return null;
      }
      for (const what of ["run", ...(AFTER[event.event] ?? [])]) due.add(what);
    }
    return LOOK_SECONDS; // a stream ends after an hour
  }

  async function start(signal) {
    ALL.forEach((what) => due.add(what));
    fetchedAt.delete("curves");
    await loop(signal, async () => {
      await fetchDue(signal);
      return null;
    });
    const listening = TERMINAL.includes(run?.status) ? null : loop(signal, () => listen(signal));
    await Promise.all([loop(signal, () => fetchDue(signal)), listening, log.start(signal)]);
  }
  return { node, title: `Run ${id}`, start };
}

function headPart(id, due) {
  const title = el("span", {}, id), status = chip(""), reason = el("p"), said = el("p", { role: "status", class: "said" });
  const bar = el("progress", { "aria-label": "Steps done" }), steps = el("span");
  const figures = el("dl", { class: "figures" }), warnings = el("ul", { class: "warnings", "aria-label": "Warnings" });
  const buttons = Object.keys(REQUESTS).map((name) => el("button", { type: "button", class: name, click: () => ask(name) }, name));
  const node = el("header", { class: "run" },
    el("h1", {}, title, " ", status), reason, el("div", { class: "bar" }, bar, steps), figures, warnings,
    el("div", { class: "buttons" }, ...buttons), said);
  const showFigures = list(figures, ([name]) => name, ([name]) => {
    const value = el("dd");
    return { node: el("div", {}, el("dt", {}, name), value), show: ([, newer]) => text(value, newer) };
  });
  const showWarnings = list(warnings, ({ index }) => index, () => {
    const node = el("li");
    return { node, show: ({ message }) => text(node, message) };
  });

  async function ask(name) {
    if (SURE[name] && !window.confirm(SURE[name])) return;
    for (const button of buttons) button.disabled = true;
    try {
      text(said, `${name}: the run is ${(await REQUESTS[name](id)).status}`);
    } catch (error) {
      text(said, error.message);
    }
    ALL.forEach((what) => due.add(what)); // the buttons come back with the run
  }

  function show(run) {
    const progress = run.progress, isRunning = run.status === "running";
    text(title, run.name || run.id);
    document.title = `${run.name || run.id} ${run.status} - millionway`;
    showChip(status, run.status);
    text(reason, run.reason);
    showProgress(bar, steps, run);
    showFigures([
      ["epoch", progress && `${number(progress.epoch)} of ${number(progress.num_epochs)}`],
      ["loss", number(progress?.loss)],
      ["images/s", isRunning ? number(progress?.images_per_second) : ""],
      ["waits for data", isRunning && progress ? percent(progress.data_wait * 100) : ""],
      ["time left", isRunning ? duration(progress?.eta_seconds) : ""],
      ["kNN", percent(run.knn)],
      ["phase", isRunning && progress ? run.phase : ""],
    ].filter(([, value]) => value));
    showWarnings(run.warnings.map((message, index) => ({ message, index })));
    warnings.hidden = run.warnings.length === 0;
    for (const button of buttons) {
      button.disabled = !POSSIBLE[button.textContent].includes(run.status);
      button.hidden = TERMINAL.includes(run.status);
    }
  }
  return { node, show };
}

function curvesPart() {
  const loss = chart("Loss", number), knn = chart("kNN accuracy", percent), rate = chart("Learning rate", number);
  const speed = chart("Images/s", number);
  const node = el("section", { hidden: true }, el("h2", {}, "Curves"),
    el("div", { class: "curves" }, ...[loss, knn, speed, rate].map((one) => one.node)));

  function show(series, run) {
    node.hidden = Object.keys(series).length === 0;
    const references = [["random encoder", run.knn_random], ["raw pixels", run.knn_pixels]].filter(([, value]) => value !== null);
    loss.show(series.loss ?? []);
    knn.show(series.knn ?? [], references.map(([name, value]) => ({ name, value })));
    speed.show(series.images_per_second ?? []);
    rate.show(series.learning_rate ?? []);
  }
  return { node, show };
}
