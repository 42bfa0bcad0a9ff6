// A curve over the steps: the mean of each bucket of steps as a line, its minimum and maximum as a band, references as dashed lines.

import { el, set, svg, text } from "./dom.js";
import { integer } from "./words.js";

const WIDTH = 400, HEIGHT = 220, LEFT = 64, RIGHT = 10, TOP = 18, BOTTOM = 26;
const MOST_VALUES = 6, MOST_STEPS = 4; // labels of an axis

// show(points, references): points as of GET /runs/{id}/metrics, references [{name, value}]; `format` writes a value.
export function chart(title, format) {
  const grid = svg("g", { class: "grid" }), marks = svg("g", { class: "reference" });
  const band = svg("path", { class: "band" }), mean = svg("path", { class: "mean" });
  const dots = svg("g", { class: "dots" });
  const pointer = svg("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img" }, grid, band, marks, mean, dots, pointer);
  const reading = el("output", {});
  const node = el("figure", {}, el("figcaption", {}, el("b", {}, title), " ", reading), picture);
  let points = [], x = null, at = null; // `at`: index of the point that is read; null: the last

  function read(index) {
    at = index;
    const point = points[at ?? points.length - 1];
    if (!point) return;
    const { first_step: first, last_step: last, minimum, maximum } = point;
    const steps = first === last ? `step ${integer(last)}` : `steps ${integer(first)} to ${integer(last)}`;
    const value = minimum === maximum ? format(maximum) : `${format(point.mean)}, ${format(minimum)} to ${format(maximum)}`;
    text(reading, at === null ? format(point.last) : `${value} at ${steps}`);
    set(pointer, "visibility", at === null ? "hidden" : "visible");
    set(pointer, "x1", x(middle(point)));
    set(pointer, "x2", x(middle(point)));
  }

  function nearest(event) {
    const box = picture.getBoundingClientRect();
    const where = ((event.clientX - box.left) / box.width) * WIDTH;
    const distances = points.map((point) => Math.abs(x(middle(point)) - where));
    read(distances.indexOf(Math.min(...distances)));
  }

  picture.addEventListener("pointermove", nearest);
  picture.addEventListener("pointerleave", () => read(null));
  picture.addEventListener("focus", () => set(reading, "aria-live", "polite"));
  picture.addEventListener("blur", () => { set(reading, "aria-live", "off"); read(null); });
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
    if (!move || !points.length) return;
    event.preventDefault();
    read(Math.max(0, Math.min(points.length - 1, (at ?? points.length - 1) + move)));
  });

  function show(newer, references = []) {
    points = newer;
    node.hidden = points.length === 0;
    if (node.hidden) return;
    const values = [...points.flatMap(({ minimum, maximum }) => [minimum, maximum]), ...references.map(({ value }) => value)];
    const [low, high] = padded(Math.min(...values), Math.max(...values));
    const y = scale(low, high, HEIGHT - BOTTOM, TOP);
    x = scale(Math.min(0, points[0].first_step), Math.max(1, points.at(-1).last_step), LEFT, WIDTH - RIGHT);
    const [upper, lower] = ["maximum", "minimum"].map((name) => points.map((point) => `${x(middle(point))},${y(point[name])}`));
    set(mean, "d", `M${points.map((point) => `${x(middle(point))},${y(point.mean)}`).join("L")}`);
    set(band, "d", `M${upper.join("L")}L${lower.reverse().join("L")}Z`);
    const few = points.length <= 30 ? points : []; // single reports that a line alone would hide
    dots.replaceChildren(...few.map((point) => svg("circle", { cx: x(middle(point)), cy: y(point.mean), r: 2.5 })));
    const level = (value, ...rest) => [svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }), ...rest];
    marks.replaceChildren(...references.flatMap(({ name, value }) =>
      level(value, svg("text", { x: WIDTH - RIGHT, y: y(value) - 4, "text-anchor": "end" }, `${name} ${format(value)}`))));
    grid.replaceChildren(
      ...ticks(low, high, MOST_VALUES).flatMap((value) =>
        level(value, svg("text", { x: LEFT - 6, y: y(value) + 5, "text-anchor": "end" }, format(value)))),
      ...ticks(0, points.at(-1).last_step, MOST_STEPS).map((step) =>
        svg("text", { x: x(step), y: HEIGHT - 6, "text-anchor": step ? "middle" : "start" }, integer(step))));
    const ends = `from ${format(points[0].mean)} to ${format(points.at(-1).last)} at step ${integer(points.at(-1).last_step)}`;
    const beside = references.map(({ name, value }) => `, ${name} ${format(value)}`).join("");
    set(picture, "aria-label", `${title} over the steps, ${ends}${beside}. Left and right arrows read single points.`);
    read(at === null ? null : Math.min(at, points.length - 1));
  }
  return { node, show };
}

function middle({ first_step: first, last_step: last }) {
  return (first + last) / 2;
}

function padded(low, high) {
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

function scale(from, to, start, end) {
  return (value) => Number((start + ((value - from) / (to - from || 1)) * (end - start)).toFixed(1));
}

// Round numbers of 1, 2 or 5 times a power of ten.
function ticks(low, high, most) {
  const rough = (high - low) / most;
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}
