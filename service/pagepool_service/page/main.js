// Asks the service every ten seconds, while the page is looked at, and has the parts drawn.
import { byId } from "./dom.js";
import { clock } from "./format.js";
import { drawHistory } from "./history.js";
import { drawImages, drawMatrix, followMatrix, loadImages } from "./images.js";
import { drawActivity, drawOverview } from "./overview.js";

const EVERY_MS = 10_000;
const TIMEOUT_MS = 30_000;
let asking = false;
let credentials = ""; // of who signed in: kept nowhere but here

async function ask(url) {
  const headers = { Accept: "application/json", ...(credentials && { Authorization: credentials }) };
  const answer = await fetch(url, { headers, signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await answer.json().catch(() => null);
  if (answer.status === 401) throw new SignInNeeded(credentials ? "Wrong user or password." : "");
  if (!answer.ok || body === null) throw new Error(body?.errors?.[0]?.message ?? `${url}: ${answer.status}`);
  return body;
}

class SignInNeeded extends Error {}

function signIn(user, password) {
  const raw = new TextEncoder().encode(`${user}:${password}`);
  credentials = user ? `Basic ${btoa(Array.from(raw, (code) => String.fromCharCode(code)).join(""))}` : "";
  byId("signout").hidden = !user;
  byId("signout").textContent = `Sign out ${user}`;
}

function askForSignIn(needed, why) {
  const form = byId("signin");
  if (needed && form.hidden) { form.hidden = false; form.elements.user.focus(); }
  form.hidden = !needed;
  for (const section of document.querySelectorAll("main > section")) section.hidden = needed;
  if (needed) signIn("");
  tell(why);
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
  document.documentElement.dataset.loaded = "true";
  const refused = done.find((one) => one.reason instanceof SignInNeeded);
  if (refused) byId("status").textContent = "Not signed in";
  askForSignIn(Boolean(refused), refused?.reason.message ?? "");
  if (refused) return;
  const failed = done.map((one, place) => (one.status === "rejected" ? `${Object.keys(parts)[place]}: ${one.reason.message}` : "")).filter(Boolean);
  tell(failed.length ? `Not everything could be read. ${failed.join("; ")}` : "");
  byId("status").textContent = failed.length ? "Not up to date" : `Updated ${clock(Date.now() / 1000, false)}`;
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
byId("signin").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(event.target.elements.user.value, event.target.elements.password.value);
  event.target.elements.password.value = "";
  refresh();
});
byId("signout").addEventListener("click", () => location.reload());
setInterval(() => { if (!document.hidden && byId("live").checked && byId("signin").hidden) refresh(); }, EVERY_MS);
followMatrix();
refresh();
