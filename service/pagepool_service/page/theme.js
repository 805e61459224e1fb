// Before anything is drawn: the theme that was chosen last, so that a dark page does not flash white.
"use strict";
try {
  const chosen = localStorage.getItem("pagepool-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is off: the system's theme counts */ }
