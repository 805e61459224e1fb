// Elements out of values. Text is only ever set as text, so no name can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

// A table with a caption for those who do not see it. columns: [title, "n" for numbers or ""].
export function table(caption, columns, rows, kind = "list") {
  return el("table", { class: kind },
    el("caption", { class: "out" }, caption),
    el("thead", {}, el("tr", {}, columns.map(([title, how]) => el("th", { scope: "col", class: how || null }, title)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, place) => el(place ? "td" : "th", {
      scope: place ? null : "row", class: columns[place][1] || null, "data-title": columns[place][0],
    }, cell))))));
}

// Replaces what is in a place, unless it is the same: focus and selection stay.
export function put(place, ...nodes) {
  const made = el("div", {}, ...nodes);
  if (made.innerHTML !== place.innerHTML) place.replaceChildren(...made.childNodes);
}

// What scrolls by itself, by keyboard too.
export const scroll = (name, ...nodes) => el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, ...nodes);

export const badge = (state) => el("span", { class: `badge ${state}` }, state);
