// The figures of the moment: tiles, what is on disk, the cache, processes, uploads and jobs.
import { badge, byId, el, put, scroll, table } from "./dom.js";
import { age, bytes, number, percent, short, times } from "./format.js";

const KINDS = {
  files: "File content, compressed", opaque: "Layers kept as they came", recipes: "Recipes of tars", index: "Index of content",
  metadata: "Names and records", spool: "Arrived, not moved yet", uploads: "Open uploads", rebuilt: "Layers made again for pulls",
  page_rounding: "Unused parts of pages",
};

const tile = (title, value, about) => el("div", { class: "card tile" }, el("h3", {}, title), el("p", { class: "big" }, value), el("p", { class: "faint" }, about));

export function drawOverview({ version, read_only: readOnly, store, cache, processes }) {
  byId("version").textContent = version + (readOnly ? ", read-only" : "");
  const tiles = [];
  if (store) {
    tiles.push(tile("Images", number(store.images) + (store.images_left_off ? "+" : ""), `tags, of ${number(store.manifests)} manifests and ${number(store.layers)} distinct layers`));
    tiles.push(tile("Content pushed", bytes(store.logical_bytes), "the layers of all images, unpacked, each image counted fully"));
    tiles.push(tile("On disk", bytes(store.disk_bytes), store.disk_bytes ? `${times(store.logical_bytes / store.disk_bytes)} less than what was pushed` : "nothing yet"));
    tiles.push(tile("Deduplication", times(store.dedup_ratio), `${bytes(store.unique_bytes)} of distinct file content, in ${bytes(store.file_bytes)}`));
  }
  if (cache) {
    tiles.push(tile("Hit ratio", percent(cache.hit_ratio), `${number(cache.hits)} of ${number(cache.hits + cache.misses)} openings, since the machine booted`));
    tiles.push(tile("Memory saved", bytes(cache.saved_bytes), `files of ${number(cache.trees)} images in the cache, against one copy of each${cache.trees_left_off ? `; ${number(cache.trees_left_off)} not looked at yet` : ""}`));
  }
  put(byId("tiles"), tiles);
  put(byId("kinds"), store ? drawKinds(store) : el("p", {}, "The store cannot be read."));
  put(byId("cache"), cache ? drawCache(cache) : el("p", {}, "This service keeps none."));
  put(byId("processlist"), table("Processes", [["Process", ""], ["State", ""], ["Memory", "n"], ["Processor time", "n"], ["Open files", "n"]],
    processes.map((one) => [one.name, badge(one.up ? "running" : "down"), bytes(one.resident_bytes), one.up ? age(one.cpu_s) : "–", number(one.open_files)])));
}

function meter(title, part, whole) {
  const bar = el("div", { class: "bar-in" });
  bar.style.width = `${Math.min(100, whole ? (100 * part) / whole : 0)}%`;
  return el("div", { class: "meter", role: "img", "aria-label": title }, bar);
}

function drawKinds(store) {
  const kinds = Object.entries(store.stored).filter(([, size]) => size).sort((one, other) => other[1] - one[1]);
  const rows = kinds.map(([kind, size]) => el("tr", {}, el("th", { scope: "row" }, KINDS[kind] ?? kind), el("td", { class: "n" }, bytes(size)), el("td", { class: "n faint" }, percent(size / store.stored_bytes)), el("td", { class: "wide" }, meter(percent(size / store.stored_bytes), size, store.stored_bytes))));
  const rebuilt = store.rebuilt_blobs_bytes ? ` ${bytes(store.rebuilt_blobs_bytes)} of layers are not kept, but compressed again when they are pulled.` : "";
  const opaque = store.stored_bytes === null ? null : store.stored.opaque / Math.max(1, store.stored_bytes);
  const quota = store.quota_bytes ? ` The quota is ${bytes(store.quota_bytes)}.` : "";
  return [el("table", { class: "kinds" }, el("caption", { class: "out" }, "Bytes stored by kind"), el("tbody", {}, rows)),
    el("p", { class: "about" }, `${percent(opaque)} are opaque: compressed layers, kept so that they come back bit for bit.${rebuilt} ${bytes(store.free_pages_bytes)} of the database are free to be used again.${quota}`)];
}

function drawCache(cache) {
  const facts = [["Used, of the budget", `${bytes(cache.used)} of ${bytes(cache.budget)}`], ["Files in it", `${number(cache.objects)}, ${bytes(cache.bytes)}`], ["Being filled", `${number(cache.partials)}, ${bytes(cache.partial_bytes)}`],
    ["Evicted since boot", `${number(cache.evictions)}, ${bytes(cache.evicted_bytes)}`], ["Without sharing it would take", bytes(cache.logical_bytes)]];
  return [meter(`${percent(cache.used / cache.budget)} of the budget`, cache.used, cache.budget),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("p", { class: "about" }, "Each distinct file of all images once; programs on this machine map it instead of having their own.")];
}

const more = (count) => (count ? el("p", { class: "about" }, `and ${number(count)} more`) : null);

export function drawActivity({ uploads, uploads_left_off: hiddenUploads, jobs, jobs_left_off: hiddenJobs }) {
  put(byId("uploads"), uploads.length
    ? [scroll("Open uploads", table("Open uploads", [["Repository", ""], ["Arrived", "n"], ["Age", "n"], ["Idle", "n"]], uploads.map((one) => [one.repository, bytes(one.bytes), age(one.age_s), age(one.idle_s)]), "plain")), more(hiddenUploads)]
    : el("p", { class: "faint" }, "Nothing is being uploaded."));
  const tries = (count) => (count > 1 ? `${count} tries` : `${count} try`);
  put(byId("jobs"), jobs.length
    ? [scroll("Jobs", table("Jobs", [["Job", ""], ["State", ""], ["Blob", ""], ["Size", "n"], ["Age", "n"]], jobs.map((one) => [`${one.kind === "ingest" ? "read layer" : "settle"} ${one.id}`, [badge(one.state), one.attempts ? ` ${tries(one.attempts)}` : ""], el("code", { title: one.blob }, short(one.blob)), bytes(one.bytes), age(one.age_s)]), "plain")), more(hiddenJobs)]
    : el("p", { class: "faint" }, "No layers wait to be read."));
}
