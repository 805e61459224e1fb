// The list of images, one image's details, and what images share.
import { showTip } from "./chart.js";
import { badge, byId, el, put, scroll, table } from "./dom.js";
import { age, bytes, number, percent, short } from "./format.js";

const PAGE = 50;
let shown = [];
let following = "";
let opened = "";

const named = ({ name, tag }) => `${name}:${tag}`;
const path = (name, reference) => `/v1/${name.split("/").map(encodeURIComponent).join("/")}/images/${encodeURIComponent(reference)}`;

export async function loadImages(ask, further = false) {
  const count = further ? PAGE : Math.max(PAGE, Math.min(1000, shown.length));
  const page = await ask(`/v1/images?n=${count}${further ? `&last=${encodeURIComponent(following)}` : ""}`);
  shown = further ? [...shown, ...page.images] : page.images;
  following = page.next ?? "";
  drawImages(ask);
}

export function drawImages(ask) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const now = Date.now() / 1000;
  const rows = shown.filter((image) => named(image).toLowerCase().includes(wanted)).map((image) => el("tr", {},
    el("th", { scope: "row" }, el("button", { type: "button", class: "link", "data-image": named(image), "aria-expanded": String(opened === named(image)), "aria-controls": "detail" }, image.name, el("span", { class: "tag" }, `:${image.tag}`))),
    el("td", {}, badge(image.state), image.reason && el("span", { class: "reason" }, image.reason)),
    el("td", { class: "n", "data-title": "" }, bytes(image.size)),
    el("td", { class: "keep" }, image.platforms ? image.platforms.join(", ") : image.platform ? [image.platform.os, image.platform.architecture, image.platform.variant].filter(Boolean).join("/") : "–"),
    el("td", { class: "keep" }, image.updated_ns === null ? "–" : `${age(now - image.updated_ns / 1e9)} ago`)));
  const body = byId("imagelist").tBodies[0];
  const focused = document.activeElement?.dataset?.image;
  body.replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 5, class: "faint" }, wanted ? "No image of that name among those shown." : "No images yet: push one."))]));
  for (const button of body.querySelectorAll("button[data-image]")) {
    button.addEventListener("click", () => openImage(ask, button.dataset.image));
    if (button.dataset.image === focused) button.focus({ preventScroll: true });
  }
  byId("more").hidden = !following;
}

async function openImage(ask, image) {
  const place = byId("detail");
  opened = opened === image ? "" : image;
  place.hidden = !opened;
  drawImages(ask);
  if (!opened) return;
  const at = image.lastIndexOf(":");
  const name = image.slice(0, at), tag = image.slice(at + 1);
  place.replaceChildren(el("p", { class: "faint" }, "Loading …"));
  const layers = await ask(path(name, tag)).catch((error) => ({ failed: error.message }));
  const sharing = layers.failed || layers.state !== "ready" ? null : await ask(`${path(name, tag)}/sharing`).catch((error) => ({ failed: error.message }));
  if (opened !== image) return;
  place.replaceChildren(...drawDetail(ask, image, layers, sharing));
  place.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  place.focus({ preventScroll: true });
}

function drawDetail(ask, image, found, sharing) {
  const close = el("button", { type: "button", class: "close", "aria-label": `Close ${image}`, onclick: () => { openImage(ask, image).then(() => document.querySelector(`button[data-image="${CSS.escape(image)}"]`)?.focus()); } }, "×");
  const head = el("div", { class: "head" }, el("h3", {}, image), close);
  if (found.failed) return [head, el("p", { class: "notice bad" }, found.failed)];
  const parts = [head, el("p", { class: "facts-line" }, badge(found.state), " ", el("code", { title: found.digest }, short(found.digest)), found.platform ? ` ${found.platform.os}/${found.platform.architecture}` : "")];
  if (found.reason) parts.push(el("p", { class: "notice bad" }, found.reason));
  parts.push(el("h4", {}, "Layers, lowest first"), scroll("Layers", table("Layers", [["Layer", ""], ["State", ""], ["Compressed", "n"], ["Unpacked", "n"], ["Entries", "n"]],
    found.layers.map((layer) => [el("code", { title: layer.digest }, short(layer.digest)), [badge(layer.state), layer.reason && el("span", { class: "reason" }, layer.reason)], bytes(layer.size), bytes(layer.plain_size), number(layer.members)]), "plain")));
  if (sharing?.failed) parts.push(el("p", { class: "notice bad" }, sharing.failed));
  else if (sharing?.waiting) parts.push(el("p", { class: "about" }, "Layers are still being read."));
  else if (sharing) parts.push(...drawSharing(sharing));
  return parts;
}

function drawSharing(sharing) {
  const list = (images, tags) => images.map(named).join(", ") + (tags > images.length ? ` and ${number(tags - images.length)} more` : "");
  const others = sharing.neighbours.length
    ? table("Images that share content", [["Image", ""], ["Shares", "n"], ["Of this image", "n"], ["In whole files", "n"], ["Its own content", "n"]],
      sharing.neighbours.map((one) => [list(one.images, one.tags), bytes(one.extent_bytes), percent(one.ratio), bytes(one.object_bytes), bytes(one.unique_bytes)]), "plain")
    : el("p", { class: "faint" }, "No other image has any of its content.");
  const left = sharing.neighbours_left_off + sharing.not_compared;
  return [
    el("p", { class: "about" }, `${number(sharing.files)} files of ${bytes(sharing.file_bytes)}; ${bytes(sharing.unique_bytes)} of distinct content in ${number(sharing.objects)} files.`),
    el("h4", {}, "Shares with"), scroll("Shares with", others),
    left ? el("p", { class: "about" }, `Not shown or not compared: ${number(left)}.`) : null,
    el("h4", {}, "Largest files"), scroll("Largest files", table("Largest files", [["Path", ""], ["Size", "n"], ["Other images with it", "n"]],
      sharing.largest.map((file) => [el("code", { class: "path" }, file.path), bytes(file.size), number(file.others)]), "plain")),
  ].filter(Boolean);
}

export function drawMatrix({ images, extent_bytes: extents, object_bytes: objects, left_off: left }) {
  const place = byId("matrix");
  if (images.length < 2) {
    put(place, el("p", { class: "faint pad" }, "Two images that are ready are needed to compare."));
    return;
  }
  const labels = images.map((image) => named(image.images[0]) + (image.tags > 1 ? ` +${image.tags - 1}` : ""));
  const rows = images.map((image, row) => el("tr", {}, el("th", { scope: "row", title: labels[row] }, labels[row]), images.map((_, column) => {
    if (row === column) return el("td", { class: "self", "aria-label": "itself" }, bytes(image.unique_bytes));
    const ratio = image.unique_bytes ? extents[row][column] / image.unique_bytes : 0;
    const text = `${labels[row]} shares ${bytes(extents[row][column])} with ${labels[column]}: ${percent(ratio)} of its content, ${bytes(objects[row][column])} in whole files`;
    return el("td", { class: `heat h${Math.round(10 * ratio)}` }, el("button", { type: "button", "data-tip": text, "aria-label": text }, percent(ratio)));
  })));
  put(place, scroll("Sharing between images", el("table", { class: "matrix" }, el("caption", { class: "out" }, "How much each image shares with each"),
    el("thead", {}, el("tr", {}, el("td", {}), labels.map((label) => el("th", { scope: "col", title: label }, el("span", {}, label))))), el("tbody", {}, rows))),
  left ? el("p", { class: "about pad" }, `The images tagged last. Not compared: ${number(left)}.`) : null);
}

export function followMatrix() {
  const place = byId("matrix"), tip = byId("tip");
  const show = (event) => {
    const button = event.target.closest?.("[data-tip]");
    if (!button) return;
    const box = button.getBoundingClientRect();
    showTip(button.dataset.tip, box.left + box.width / 2, box.top);
  };
  const hide = () => { tip.hidden = true; };
  for (const name of ["pointerover", "focusin", "click"]) place.addEventListener(name, show);
  for (const name of ["pointerout", "focusout"]) place.addEventListener(name, hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });
}
