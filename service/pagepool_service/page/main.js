// Asks the service every ten seconds, while the page is looked at, and has the parts drawn.
import { byId } from "./dom.js";
import { clock } from "./format.js";
import { drawHistory } from "./history.js";
import { drawImages, drawMatrix, followMatrix, loadImages } from "./images.js";
import { drawActivity, drawOverview } from "./overview.js";

const EVERY_MS = 10_000;
const TIMEOUT_MS = 30_000;
let asking = false;

async function ask(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await answer.json().catch(() => null);
  if (!answer.ok || body === null) throw new Error(body?.errors?.[0]?.message ?? `${url}: ${answer.status}`);
  return body;
}

function tell(problem) {
  const place = byId("problem");
  place.hidden = !problem;
  if (place.textContent !== problem) place.textContent = problem;
}

const span = () => document.querySelector("input[name=span]:checked").value;
const parts = {
  overview: async () => drawOverview(await ask("/v1/overview")),
  history: async () => drawHistory(await ask(`/v1/history?span=${span()}`)),
  images: async () => loadImages(ask),
  sharing: async () => drawMatrix(await ask("/v1/sharing")),
  activity: async () => drawActivity(await ask("/v1/activity?n=20")),
};

async function refresh() {
  if (asking) return;
  asking = true;
  const done = await Promise.allSettled(Object.values(parts).map((draw) => draw()));
  asking = false;
  const failed = done.map((one, place) => (one.status === "rejected" ? `${Object.keys(parts)[place]}: ${one.reason.message}` : "")).filter(Boolean);
  tell(failed.length ? `Not everything could be read. ${failed.join("; ")}` : "");
  byId("status").textContent = failed.length ? "Not up to date" : `Updated ${clock(Date.now() / 1000, false)}`;
  document.documentElement.dataset.loaded = "true";
}

function chooseTheme(choice) {
  if (choice === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  try { localStorage.setItem("pagepool-theme", choice); } catch { /* it counts until the page is left */ }
}

byId("theme").value = document.documentElement.dataset.theme ?? "auto";
byId("theme").addEventListener("change", (event) => chooseTheme(event.target.value));
byId("filter").addEventListener("input", () => drawImages(ask));
byId("more").addEventListener("click", () => loadImages(ask, true).catch((error) => tell(error.message)));
for (const choice of document.querySelectorAll("input[name=span]")) choice.addEventListener("change", () => parts.history().catch((error) => tell(error.message)));
document.addEventListener("visibilitychange", () => { if (!document.hidden && byId("live").checked) refresh(); });
byId("live").addEventListener("change", (event) => { if (event.target.checked) refresh(); else byId("status").textContent = "Paused"; });
setInterval(() => { if (!document.hidden && byId("live").checked) refresh(); }, EVERY_MS);
followMatrix();
refresh();
