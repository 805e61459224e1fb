// One line over time, as SVG: axes, hover and tap, arrow keys. Colours come from the style sheet.
import { byId, el, svg } from "./dom.js";
import { clock } from "./format.js";

const WIDTH = 360, HEIGHT = 150, LEFT = 58, RIGHT = 10, TOP = 12, BOTTOM = 24;

function ceiling(value, binary) {
  if (value <= 0) return 1;
  const base = binary ? 1024 ** Math.floor(Math.log(value) / Math.log(1024)) : 1;
  const power = 10 ** Math.floor(Math.log10(value / base));
  return base * power * [1, 2, 2.5, 5, 10].find((step) => step * power * base >= value * 0.999);
}

// points: [[time, value or null]]; show: of a value, its text; limit: a line across, if it is near enough.
export function chart({ title, about, points, from, to, show, binary, top, limit, day }) {
  const known = points.filter(([, value]) => value !== null);
  const highest = Math.max(0, ...known.map(([, value]) => value));
  const most = top ?? ceiling(limit && highest > limit / 4 ? Math.max(limit, highest) : highest, binary);
  const x = (time) => LEFT + ((WIDTH - LEFT - RIGHT) * (time - from)) / Math.max(1, to - from);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / most));
  const runs = [];
  let open = false;
  for (const [time, value] of points) {
    if (value === null) { open = false; continue; }
    if (!open) runs.push([]);
    runs.at(-1).push([x(time), y(value)]);
    open = true;
  }
  const floor = y(0);
  const line = (run) => run.map(([px, py], place) => `${place ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  const marker = svg("g", { class: "marker", visibility: "hidden" }, svg("line", { y1: TOP, y2: floor }), svg("circle", { r: 4 }));
  const last = known.at(-1);
  const summary = last ? `now ${show(last[1])}, at most ${show(highest)}` : "no samples yet";
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0", "aria-label": `${title}: ${summary}. Arrow keys go through the values.` },
    [0, 0.5, 1].map((part) => [
      svg("line", { class: part ? "grid" : "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(part * most), y2: y(part * most) }),
      svg("text", { class: "tick", x: LEFT - 8, y: y(part * most) + 4, "text-anchor": "end" }, show(part * most)),
    ]),
    [0, 0.5, 1].map((part) => svg("text", { class: "tick", x: x(from + part * (to - from)), y: HEIGHT - 6, "text-anchor": ["start", "middle", "end"][2 * part] },
      day ? clock(from + part * (to - from), true).slice(5) : clock(from + part * (to - from), false).slice(0, 5))),
    limit && limit <= most && svg("line", { class: "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit), y2: y(limit) }),
    runs.map((run) => [
      svg("path", { class: "area", d: `${line(run)}L${run.at(-1)[0].toFixed(1)} ${floor}L${run[0][0].toFixed(1)} ${floor}Z` }),
      run.length > 1 ? svg("path", { class: "line", d: line(run) }) : svg("circle", { class: "dot", cx: run[0][0], cy: run[0][1], r: 2.5 }),
    ]),
    marker);
  if (!known.length) picture.append(svg("text", { class: "tick", x: (WIDTH + LEFT) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no samples yet: one comes every 10 seconds"));
  follow(picture, marker, known, x, y, (time, value) => `${clock(time, day)}  ${show(value)}`);
  return el("figure", { class: "card chart" }, el("figcaption", {}, el("b", {}, title), el("span", { class: "now" }, last ? show(last[1]) : "–"), el("small", {}, about)), picture);
}

function follow(picture, marker, known, x, y, text) {
  const tip = byId("tip");
  let place = -1;
  const hide = () => { marker.setAttribute("visibility", "hidden"); tip.hidden = true; place = -1; };
  const mark = (index) => {
    place = Math.max(0, Math.min(known.length - 1, index));
    const [time, value] = known[place];
    const [line, circle] = marker.children;
    for (const name of ["x1", "x2"]) line.setAttribute(name, x(time));
    circle.setAttribute("cx", x(time));
    circle.setAttribute("cy", y(value));
    marker.setAttribute("visibility", "visible");
    const box = picture.getBoundingClientRect();
    showTip(text(time, value), box.left + (box.width * x(time)) / WIDTH, box.top + (box.height * y(value)) / HEIGHT);
  };
  const nearest = (event) => {
    if (!known.length) return;
    const box = picture.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * WIDTH;
    let best = 0;
    known.forEach(([time], index) => { if (Math.abs(x(time) - wanted) < Math.abs(x(known[best][0]) - wanted)) best = index; });
    mark(best);
  };
  picture.addEventListener("pointermove", nearest);
  picture.addEventListener("pointerdown", nearest);
  picture.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (!known.length || step === undefined) return;
    event.preventDefault();
    mark(place < 0 ? known.length - 1 : place + step);
    picture.setAttribute("aria-label", text(...known[place]));
  });
}

export function showTip(text, left, top) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(innerWidth - box.width - 4, left - box.width / 2))}px`;
  tip.style.top = `${top - box.height - 10 < 4 ? top + 14 : top - box.height - 10}px`;
}
