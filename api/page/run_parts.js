// The parts of a run's view that show records as they are: {node, show(records)}.

import { checkpointFile, exportFile, getCheckpointFiles, getExportFiles, pin, unpin } from "./calls.js";
import { el, list, set, table, text } from "./dom.js";
import { bytes, duration, integer, number, percent, ranges, time } from "./words.js";

const MOST_BYTES = 200e6; // a download passes through this tab's memory

function section(title, ...children) {
  return el("section", { hidden: true }, el("h2", {}, title), ...children);
}

export function waitPart() {
  const place = el("p"), reasons = el("ul"), changes = el("ul");
  const wish = el("div", {}, el("h3", {}, "What would let it start"), changes);
  const node = section("Why it waits", place, reasons, wish);
  const showReasons = list(reasons, ({ token }) => token, ({ token }) => {
    const words = el("span");
    return { node: el("li", {}, words, " ", el("code", {}, token)), show: ({ message }) => text(words, message) };
  });
  const showChanges = list(changes, (sentence) => sentence, (sentence) => ({ node: el("li", {}, sentence), show: () => {} }));

  function show({ wait }) {
    node.hidden = !wait;
    if (!wait) return;
    const start = wait.starts_at ? `; expected to start ${time(wait.starts_at)}` : "";
    text(place, wait.position === null ? "" : `Place ${integer(wait.position)} in the queue${start}.`);
    showReasons(wait.reasons);
    showChanges(wait.starts_if);
    wish.hidden = wait.starts_if.length === 0;
  }
  return { node, show };
}

export function attemptsPart() {
  const attempts = el("div");
  const node = section("Attempts", attempts);
  const showAttempts = list(attempts, ({ number: count }) => count, attemptPart);
  const show = (newer) => {
    node.hidden = newer.length === 0;
    showAttempts([...newer].reverse());
  };
  return { node, show };
}

function attemptPart() {
  const title = el("h3"), reason = el("p");
  const nodes = table("Nodes by rank", [["Worker"], ["Slots"], ["State"], ["Exit code", "number"], ["Reason"]], ({ worker }) => worker,
    () => ({}), (cells, member) => {
      text(cells[0], `${member.worker} on ${member.host} (${member.address})`);
      text(cells[1], ranges(member.slots));
      text(cells[2], member.state);
      text(cells[3], member.exit_code);
      text(cells[4], member.reason);
    });
  const tails = el("div");
  const showTails = list(tails, ({ worker }) => worker, ({ worker }) => {
    const tail = el("pre", { tabindex: 0, "aria-label": `Last lines of ${worker}` });
    const folded = el("details", {}, el("summary", {}, `Last lines of ${worker}`), tail);
    return { node: folded, show: ({ log_tail: lines }) => text(tail, lines) };
  });

  function show(attempt) {
    const { number: count, members, ranks_per_node: ranks, placed_at: placed, ended_at: ended } = attempt;
    const length = ended ? `, ${duration(ended - placed)}` : "";
    const from = attempt.start_step === null ? "" : `, from step ${integer(attempt.start_step)}`;
    text(title, `${count}: ${attempt.outcome ?? "goes on"}, ${members.length} x ${ranks} ranks${from}, ${time(placed)}${length}`);
    text(reason, attempt.reason);
    nodes.show(members);
    showTails(members.filter(({ log_tail: lines }) => lines));
  }
  return { node: el("div", { class: "attempt" }, title, reason, nodes.node, tails), show };
}

export function checkpointsPart(id, changed) {
  const numbers = ["Step", "Epoch", "Loss", "kNN", "Size"].map((title) => [title, "number"]);
  const columns = [...numbers, ["Written"], ["Kept"], ["Files"]];
  const said = el("p", { role: "status", class: "said" });

  async function toggle(step, pressed) {
    try {
      await (pressed ? unpin : pin)(id, step);
      text(said, `step ${integer(step)} ${pressed ? "may be removed when better ones come" : "is kept whatever comes"}`);
    } catch (error) {
      text(said, error.message);
    }
    changed();
  }

  const make = (cells, { step }) => {
    const isPinned = (button) => button.getAttribute("aria-pressed") === "true";
    const button = el("button", { type: "button", "aria-pressed": "false", "aria-label": `Pin the checkpoint of step ${step}`,
      click: (event) => toggle(step, isPinned(event.currentTarget)) });
    cells[6].append(button);
    cells[7].append(filesPart(`Files of step ${integer(step)}`, () => getCheckpointFiles(id, step), checkpointFile(id, step)));
    return button;
  };
  const fill = (cells, checkpoint, button) => {
    text(cells[0], integer(checkpoint.step));
    text(cells[1], number(checkpoint.epoch));
    text(cells[2], number(checkpoint.loss));
    text(cells[3], percent(checkpoint.knn));
    text(cells[4], bytes(checkpoint.num_bytes));
    text(cells[5], time(checkpoint.created_at));
    text(button, checkpoint.pinned ? "unpin" : "pin");
    set(button, "aria-pressed", checkpoint.pinned);
  };
  const rows = table("On disk, newest first", columns, ({ step }) => step, make, fill);
  const node = section("Checkpoints", said, rows.node);
  const show = (checkpoints) => {
    node.hidden = checkpoints.length === 0;
    rows.show([...checkpoints].reverse());
  };
  return { node, show };
}

export function exportPart(id) {
  const path = el("code");
  const files = filesPart("Its files", () => getExportFiles(id), exportFile(id));
  const node = section("Exported backbone", el("p", {}, "Loads in timm from ", path), files);
  const show = (run) => {
    node.hidden = !run.export;
    text(path, run.export);
  };
  return { node, show };
}

// Folded; looked up when it is unfolded. fileOf(name) -> {url, blob()}.
function filesPart(title, find, fileOf) {
  const files = el("ul"), said = el("p", { role: "status" });
  async function unfold(event) {
    if (!event.target.open) return;
    try {
      files.replaceChildren(...(await find()).map((file) => fileItem(file, fileOf(file.name), said)));
      text(said, "");
    } catch (error) {
      text(said, error.message);
    }
  }
  return el("details", { toggle: unfold }, el("summary", {}, title), files, said);
}

function fileItem({ name, num_bytes: size }, { url, blob }, said) {
  const words = `${name} (${bytes(size)}) `;
  if (size > MOST_BYTES) return el("li", {}, words, el("code", {}, `curl -fO -C - -H "Authorization: Bearer $KEY" '${url}'`));
  async function download() {
    try {
      text(said, `${name} is on its way`);
      const link = el("a", { href: URL.createObjectURL(await blob()), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      text(said, "");
    } catch (error) {
      text(said, error.message);
    }
  }
  return el("li", {}, words, el("button", { type: "button", click: download, "aria-label": `Download ${name}` }, "download"));
}

export function historyPart() {
  const columns = [["Time"], ["Event"], ["Status"], ["Attempt", "number"], ["Reason"]];
  const rows = table("Every status that the run was in, newest first", columns, ({ key }) => key, () => ({}), (cells, entry) => {
    text(cells[0], time(entry.time));
    text(cells[1], entry.event);
    text(cells[2], entry.status);
    text(cells[3], entry.attempt);
    text(cells[4], entry.reason);
  });
  const node = section("History", rows.node);
  const show = (history) => {
    node.hidden = history.length === 0;
    rows.show(history.map((entry, index) => ({ ...entry, key: index })).reverse());
  };
  return { node, show };
}

export function factsPart() {
  const facts = el("dl", { class: "facts" });
  const spec = el("pre", { tabindex: 0, "aria-label": "Specification" });
  const node = section("Facts", facts, el("details", {}, el("summary", {}, "Specification"), spec));
  const showFacts = list(facts, ([name]) => name, ([name]) => {
    const value = el("dd");
    return { node: el("div", {}, el("dt", {}, name), value), show: ([, newer]) => text(value, newer) };
  });

  function show(run) {
    node.hidden = false;
    showFacts([
      ["id", run.id],
      ["owner", run.owner],
      ["priority", run.priority],
      ["labels", Object.entries(run.labels).map(([name, value]) => `${name}=${value}`).join(", ")],
      ["ended because", run.termination_reason],
      ["workers", run.workers.join(", ")],
      ["ranks", run.ranks],
      ["images", integer(run.num_images)],
      ["checkpoint", run.checkpoint],
      ["forked from", run.parent && `${run.parent.run_id}, step ${integer(run.parent.step)}`],
      ["submitted", time(run.created_at)],
      ["first placed", time(run.started_at)],
      ["ended", time(run.finished_at)],
    ].filter(([, value]) => value !== null && value !== ""));
    text(spec, JSON.stringify(run.spec, null, 2));
  }
  return { node, show };
}
