// Samples as charts and as a table. What counts up is shown by how much it grew between two samples.
import { chart } from "./chart.js";
import { byId, table } from "./dom.js";
import { bytes, clock, percent, rate } from "./format.js";

// What one or two counters did over some samples, by `make`; null where one began anew, or too much time lies between.
function grown(samples, step, over, make, ...names) {
  return samples.map((sample, place) => {
    const before = place ? samples[Math.max(0, place - over)] : null;
    if (!before || sample.time_s - before.time_s > 4 * step * over) return [sample.time_s, null];
    const more = names.map((name) => (sample[name] === null || before[name] === null ? -1 : sample[name] - before[name]));
    return [sample.time_s, more.some((count) => count < 0) ? null : make(...more, sample.time_s - before.time_s)];
  });
}

const of = (samples, name) => samples.map((sample) => [sample.time_s, sample[name]]);

export function drawHistory({ fields, samples, span, now_s: now, step_s: kept }) {
  const rows = samples.map((values) => Object.fromEntries(fields.map((name, place) => [name, values[place]])));
  const step = Math.max(kept, rows.length > 1 ? (rows.at(-1).time_s - rows[0].time_s) / (rows.length - 1) : 0);
  const length = span === "hour" ? 3600 : 7 * 86400;
  const ratios = grown(rows, step, 6, (hits, misses) => (hits + misses ? hits / (hits + misses) : null), "hits", "misses");
  const requests = grown(rows, step, 1, (count, seconds) => count / seconds, "requests");
  const used = of(rows, "cache_used"), saved = of(rows, "saved_bytes"), disk = of(rows, "disk_bytes");
  const common = { from: now - length, to: now, day: span === "week" };
  const place = byId("charts");
  const focused = [...place.children].findIndex((figure) => figure.contains(document.activeElement));
  place.replaceChildren(
    chart({ ...common, title: "Hit ratio", about: "openings of files that found them in the cache", points: ratios, show: percent, top: 1 }),
    chart({ ...common, title: "Memory saved", about: "what images would take more, without sharing", points: saved, show: bytes, binary: true }),
    chart({ ...common, title: "Cache size", about: "dashed: its budget", points: used, show: bytes, binary: true, limit: rows.at(-1)?.cache_budget }),
    chart({ ...common, title: "Requests per second", about: "reads of pages included", points: requests, show: rate }),
    chart({ ...common, title: "Content pushed", about: "layers of all images, unpacked, each image counted fully", points: of(rows, "logical_bytes"), show: bytes, binary: true }),
    chart({ ...common, title: "Store on disk", about: "database, spool and open uploads", points: disk, show: bytes, binary: true }),
  );
  if (focused >= 0) place.children[focused].querySelector("svg").focus({ preventScroll: true });
  const shown = rows.map((row, place) => [clock(row.time_s, span === "week"), percent(ratios[place][1]), bytes(saved[place][1]), bytes(used[place][1]), rate(requests[place][1]), bytes(disk[place][1])]);
  byId("samples").replaceChildren(table("Samples, newest first", [["Time", ""], ["Hit ratio", "n"], ["Memory saved", "n"], ["Cache", "n"], ["Requests/s", "n"], ["On disk", "n"]], shown.reverse(), "plain"));
}
