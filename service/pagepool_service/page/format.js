// Numbers and times for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let unit = 0;
  let value = count;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  return `${unit === 0 ? value : value.toFixed(Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0)} ${UNITS[unit]}`;
}

export const number = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en").replaceAll(",", "\u202f"));
export const rate = (value) => (value === null ? "–" : value >= 100 ? number(value) : value.toFixed(value < 10 ? 2 : 1));
export function percent(ratio) {
  if (ratio === null || !Number.isFinite(ratio)) return "–";
  return ratio > 0 && ratio < 0.001 ? "< 0.1 %" : `${(100 * ratio).toFixed(ratio > 0 && ratio < 0.1 ? 1 : 0)} %`;
}
export const times = (factor) => (factor === null ? "–" : `${factor.toFixed(factor < 10 ? 2 : 1)}×`);

export function age(seconds) {
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${name}`;
  return `${Math.max(0, Math.floor(seconds))} s`;
}

const two = (value) => String(value).padStart(2, "0");
export function clock(seconds, withDay) {
  const time = new Date(1000 * seconds);
  const hours = `${two(time.getHours())}:${two(time.getMinutes())}`;
  return withDay ? `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${hours}` : `${hours}:${two(time.getSeconds())}`;
}

export const short = (digest) => digest.replace(/^([a-z0-9]+:.{12}).*/s, "$1…");
