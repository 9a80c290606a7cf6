/** Line charts in SVG, over the last minutes, each with its figures in words and as a table. */

import { el, setText, svg } from "./dom.js";
import { clock, NONE } from "./format.js";

export const WINDOW_MS = 5 * 60_000;
const POINTS_MAX = 300; // of one chart, whatever the pace
const ROWS = 12; // of the table

const WIDTH = 320; // in the drawing's own units; CSS stretches it
const HEIGHT = 120;
const LEFT = 0;
const TOP = 6;
const BOTTOM = 6;

/** One chart. `series`: {title} each, two or three at most. `format(value)` gives text with its unit. */
export class Chart {
  #series;
  #format;
  #points = []; // [timeMs, [value or null …]]
  #paths;
  #drawing;
  #values;
  #top;
  #table;
  #details;
  #title;
  #empty;

  constructor(title, about, series, format) {
    this.#title = title;
    this.#series = series;
    this.#format = format;
    this.#paths = series.map((_, index) => svg("path", { class: `line line-${index}` }));
    const grid = [0, 0.5, 1].map((part) => {
      const y = TOP + part * (HEIGHT - TOP - BOTTOM);
      return svg("line", { x1: LEFT, x2: WIDTH, y1: y, y2: y, class: "grid" });
    });
    this.#drawing = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title,
    });
    this.#drawing.append(...grid, ...this.#paths);
    this.#values = series.map(() => el("b", {}, NONE));
    this.#top = el("span", { class: "top", "aria-hidden": "true" });
    this.#empty = el("span", { class: "waiting" }, "Waiting for a second look…");
    const legend = el("ul", { class: "legend" }, ...series.map((each, index) =>
      el("li", {}, el("i", { class: `key key-${index}`, "aria-hidden": "true" }), `${each.title} `, this.#values[index])));
    this.#table = el("tbody");
    this.#details = el("details", { ontoggle: () => this.#fillTable() },
      el("summary", {}, "As a table", el("span", { class: "sr" }, `: ${title}`)),
      el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"),
          ...series.map((each) => el("th", { scope: "col", class: "number" }, each.title)))),
        this.#table));
    this.element = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title), el("p", { class: "quiet" }, about)),
      legend,
      el("div", { class: "plot" }, this.#top, this.#drawing, this.#empty,
        el("span", { class: "from", "aria-hidden": "true" }, "5 min ago"),
        el("span", { class: "to", "aria-hidden": "true" }, "now")),
      this.#details);
  }

  push(timeMs, values) {
    this.#points.push([timeMs, values]);
    while (this.#points.length > POINTS_MAX || this.#points[0][0] < timeMs - WINDOW_MS) this.#points.shift();
  }

  draw(nowMs) {
    const all = this.#points.flatMap(([, values]) => values).filter((value) => value !== null);
    this.#empty.hidden = all.length > 0;
    setText(this.#empty, this.#points.length ? "Nothing in this time" : "Waiting for a second look…");
    const highest = nice(Math.max(0, ...all));
    setText(this.#top, all.length ? this.#format(highest) : "");
    const x = (timeMs) => WIDTH - ((nowMs - timeMs) / WINDOW_MS) * WIDTH;
    const y = (value) => HEIGHT - BOTTOM - (value / highest) * (HEIGHT - TOP - BOTTOM);
    const words = [];
    this.#series.forEach(({ title }, index) => {
      let path = "";
      let pen = "M";
      for (const [timeMs, values] of this.#points) {
        if (values[index] === null) {
          pen = "M";
          continue;
        }
        path += `${pen}${x(timeMs).toFixed(1)} ${y(values[index]).toFixed(1)}`;
        // A single value between two gaps is a dot: a line of no length with round ends.
        if (pen === "M") path += "h0";
        pen = "L";
      }
      this.#paths[index].setAttribute("d", path);
      const own = this.#points.map(([, values]) => values[index]).filter((value) => value !== null);
      const last = this.#points.at(-1)?.[1][index] ?? null;
      setText(this.#values[index], last === null ? NONE : this.#format(last));
      if (own.length) {
        words.push(`${title}: now ${last === null ? "nothing" : this.#format(last)}, lowest ${this.#format(Math.min(...own))}, highest ${this.#format(Math.max(...own))}`);
      }
    });
    const told = words.length ? words.join(". ") : "nothing to show yet";
    this.#drawing.setAttribute("aria-label", `${this.#title}, last five minutes. ${told}.`);
    this.#fillTable();
  }

  #fillTable() {
    if (!this.#details.open) return;
    this.#table.replaceChildren(...this.#points.slice(-ROWS).reverse().map(([timeMs, values]) =>
      el("tr", {}, el("th", { scope: "row" }, clock(timeMs)),
        ...values.map((value) => el("td", { class: "number" }, value === null ? NONE : this.#format(value))))));
  }
}

/** The next of 1, 2 or 5 times a power of ten. */
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}
