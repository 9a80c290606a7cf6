/** Numbers and times in words, all of them from the browser's own formats. */

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const NONE = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  return known(value) ? WHOLE.format(value) : NONE;
}

/** A number with as many places as tell something. */
export function figure(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  return (size >= 100 ? WHOLE : size >= 10 ? ONE : TWO).format(value);
}

export function ms(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) >= 1_000 ? `${figure(value / 1_000)} s` : `${figure(value)} ms`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  if (value < 1_024) return `${count(value)} B`;
  return value < 1_048_576 ? `${figure(value / 1_024)} KiB` : `${figure(value / 1_048_576)} MiB`;
}

export function span(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5_400) return `${Math.round(s / 60)} min`;
  if (s < 172_800) return `${ONE.format(s / 3_600)} h`;
  return `${ONE.format(s / 86_400)} days`;
}

export const clock = (timeMs) => CLOCK.format(timeMs);

export function when(timeMs) {
  if (!known(timeMs) || timeMs <= 0 || timeMs > 8.64e15) return NONE;
  return DAY.format(timeMs);
}

export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

/** The bytes of a text in UTF-8, in hexadecimal, 16 a line, each line with its text beside it. */
export function hex(text) {
  const data = new TextEncoder().encode(text);
  const lines = [];
  for (let start = 0; start < data.length; start += 16) {
    const line = [...data.slice(start, start + 16)];
    const digits = line.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const shown = line.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${start.toString(16).padStart(4, "0")}  ${digits.padEnd(47)}  ${shown}`);
  }
  return lines.join("\n");
}
