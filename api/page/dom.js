// Elements and text, and no markup: whatever the API answers is put into text nodes, so it is shown and never run.

const SVG = "http://www.w3.org/2000/svg";

// An attribute that is a function listens to the event of its name; false and null leave the attribute out.
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Changes the page only where it differs: an unchanged node keeps its selection, and nothing flickers.
export function text(node, value) {
  const shown = value ?? "";
  if (node.textContent !== String(shown)) node.textContent = shown;
}

export function set(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// One child of `parent` for each item, in their order. create(item) -> {node, show(item)}; a child stays as long as its key does,
// with its focus and whatever is unfolded in it.
export function list(parent, keyOf, create) {
  const parts = new Map();
  return (items) => {
    const keys = new Set(items.map(keyOf));
    for (const [key, part] of parts) {
      if (keys.has(key)) continue;
      part.node.remove();
      parts.delete(key);
    }
    items.forEach((item, index) => {
      const key = keyOf(item);
      if (!parts.has(key)) parts.set(key, create(item));
      const part = parts.get(key);
      part.show(item);
      if (parent.children[index] !== part.node) parent.insertBefore(part.node, parent.children[index] ?? null);
    });
  };
}

// A table whose rows are lists of cells. columns: [title, class]; fill(cells, item) writes into them by their index. With each row
// the titles again, by which style.css makes it a card on a phone.
export function table(caption, columns, keyOf, make, fill) {
  const body = el("tbody");
  const heads = columns.map(([title, kind = ""]) => el("th", { scope: "col", class: kind }, title));
  const node = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads)), body);
  const show = list(body, keyOf, (item) => {
    const cells = columns.map(([title, kind = ""]) => el("td", { class: kind, "data-label": title }));
    const parts = make(cells, item);
    return { node: el("tr", {}, ...cells), show: (newer) => fill(cells, newer, parts) };
  });
  return { node, show };
}

export function chip(status) {
  return el("span", { class: "chip", "data-status": status }, status);
}

export function showChip(node, status) {
  text(node, status);
  set(node, "data-status", status);
}
