// Every request of the page. The key travels in the Authorization header alone, never in a URL, where logs and histories would keep it;
// that is also why streams are read with fetch: EventSource sends no header.

const KEY = "millionway-key";
const ANSWER_MS = 20000;

export const key = {
  get: () => sessionStorage.getItem(KEY), // forgotten with the tab
  set: (secret) => sessionStorage.setItem(KEY, secret),
  forget: () => sessionStorage.removeItem(KEY),
};

// The API does not answer, or says that it cannot just now: worth trying again.
export class Away extends Error {
  constructor(message, retryAfter = 0) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

// The API refuses, for the reason that its problem document gives.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const listRuns = ({ status, label, cursor }, signal) => get(path`/runs`, { status, label, cursor, limit: 50 }, signal);
export const getRun = (id, signal) => get(path`/runs/${id}`, {}, signal);
export const getHistory = (id, signal) => get(path`/runs/${id}/history`, {}, signal);
export const getAttempts = (id, signal) => get(path`/runs/${id}/attempts`, {}, signal);
export const getCheckpoints = (id, signal) => get(path`/runs/${id}/checkpoints`, {}, signal);
export const getMetrics = (id, series, signal) => get(path`/runs/${id}/metrics`, { points: 300, series }, signal);
export const getLogIndex = (id, signal) => get(path`/runs/${id}/logs/index`, {}, signal);
export const pause = (id) => post(path`/runs/${id}/pause`);
export const resume = (id) => post(path`/runs/${id}/resume`);
export const cancel = (id) => post(path`/runs/${id}/cancel`);
export const kill = (id) => post(path`/runs/${id}/kill`);
export const pin = (id, step) => put(path`/runs/${id}/checkpoints/${step}/pin`);
export const unpin = (id, step) => remove(path`/runs/${id}/checkpoints/${step}/pin`);
export const getCheckpointFiles = (id, step) => get(path`/runs/${id}/checkpoints/${step}/files`);
export const getExportFiles = (id) => get(path`/runs/${id}/export`);
export const checkpointFile = (id, step) => (name) => fetched(path`/runs/${id}/checkpoints/${step}/files/${name}`);
export const exportFile = (id) => (name) => fetched(path`/runs/${id}/export/${name}`);
export const getWorkers = (signal) => get(path`/workers`, {}, signal);
export const drain = (worker, mode) => post(path`/workers/${worker}/drain`, { mode });
export const undrain = (worker) => remove(path`/workers/${worker}/drain`);

// The runs of nobody (no key's name begins so): an administrator may ask for others' runs, a user is refused.
export async function isAdmin(signal) {
  try {
    await get(path`/runs`, { owner: "-", limit: 1 }, signal);
    return true;
  } catch (error) {
    if (error.status === 403) return false;
    throw error;
  }
}

export async function readLog(id, { attempt, name, offset }, signal) {
  const answer = await stream(path`/runs/${id}/logs`, { attempt, name, offset }, signal);
  return { piece: new Uint8Array(await answer.arrayBuffer()), next: Number(answer.headers.get("Millionway-Next-Offset")) };
}

export async function* followLog(id, { attempt, name, offset }, signal) {
  yield* pieces(await stream(path`/runs/${id}/logs`, { attempt, name, offset, follow: true }, signal), signal);
}

// {id, event, data} as they come, from behind the cursor `after`. Our API ends lines with a line feed and nothing else.
export async function* events(id, after, signal) {
  const answer = await stream(path`/runs/${id}/events`, { after }, signal, { Accept: "text/event-stream" });
  const decoder = new TextDecoder();
  let buffer = "";
  for await (const piece of pieces(answer, signal)) {
    const blocks = (buffer + decoder.decode(piece, { stream: true })).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line && !line.startsWith(":"));
      if (lines.length) yield Object.fromEntries(lines.map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
    }
  }
}

async function* pieces(answer, signal) {
  const reader = answer.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw signal.aborted ? error : new Away("the API broke off");
  } finally {
    reader.cancel().catch(() => {}); // of a stream that broke there is nothing to cancel
  }
}

// A part of a path is data: nothing in it may end the segment, nor the quotes of a shell.
function path(strings, ...values) {
  return String.raw({ raw: strings }, ...values.map((value) => encodeURIComponent(value).replaceAll("'", "%27")));
}

// Relative to the page, so that a proxy may serve it all below a path of its own.
function address(path, query) {
  const url = new URL(path.slice(1), document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, one);
  }
  url.hash = "";
  return url;
}

const get = (path, query = {}, signal) => json("GET", path, { query, signal });
const post = (path, body) => json("POST", path, { body });
const put = (path) => json("PUT", path, {});
const remove = (path) => json("DELETE", path, {});
const stream = (path, query, signal, headers = {}) => send("GET", path, { query, signal, headers });
const fetched = (path) => ({ url: address(path, {}).href, blob: async () => (await send("GET", path, {})).blob() });

async function json(method, path, given) {
  const limit = AbortSignal.timeout(ANSWER_MS);
  const signal = given.signal ? AbortSignal.any([given.signal, limit]) : limit;
  try {
    return await (await send(method, path, { ...given, signal })).json();
  } catch (error) {
    if (error instanceof Away || error instanceof Refused || given.signal?.aborted) throw error;
    throw new Away("the API does not answer");
  }
}

async function send(method, path, { query = {}, body, signal, headers = {} }) {
  const content = body && { "Content-Type": "application/json" };
  const options = { cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer" };
  let answer;
  try {
    answer = await fetch(address(path, query), {
      ...options, method, signal, body: body && JSON.stringify(body),
      headers: { Authorization: `Bearer ${key.get()}`, ...content, ...headers },
    });
  } catch (error) {
    throw signal?.aborted ? error : new Away("the API does not answer");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({})); // a proxy's page
  const message = problem.detail ?? `the answer is ${answer.status} ${answer.statusText}`;
  if ([429, 502, 503, 504].includes(answer.status)) throw new Away(message, Number(answer.headers.get("Retry-After")) || 0);
  throw new Refused(answer.status, message);
}
