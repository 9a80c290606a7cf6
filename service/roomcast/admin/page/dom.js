/**
 * Builds what the page shows. Text from elsewhere only ever becomes text: nothing here, and nothing in the page,
 * reads HTML from a string.
 */

const SVG = "http://www.w3.org/2000/svg";

/** An element. `given`: attributes; `class`, and `on…` for listeners. `children`: elements and texts. */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The same for SVG. */
export function svg(name, given = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(given)) made.setAttribute(key, String(value));
  return made;
}

// What has no shape of its own: control characters, and those that turn the direction of writing or have no width.
const UNSEEN = /[\p{Cc}\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

/** A text from elsewhere in which everything can be seen: no name looks like another one. */
export function visible(text) {
  return text.replace(UNSEEN, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}

/** A name from elsewhere. Its direction of writing changes nothing around it. */
export function name(text, empty = "(empty)") {
  return text ? el("bdi", { class: "name" }, visible(text)) : el("span", { class: "quiet" }, empty);
}

/** Sets a text, if it is another one. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A table whose rows are updated in place, so that focus and selection stay where they are.
 *
 * `columns`: {title, cell(row), kind?}. A cell is a text, or an element that is made anew when its `key(row)` changes;
 * kind "number" or "action". `rowKey(row)` tells rows apart.
 */
export class LiveTable {
  #columns;
  #rowKey;
  #rows = new Map();
  #body;
  #empty;
  #emptyText;

  constructor(caption, columns, rowKey, emptyText) {
    this.#columns = columns;
    this.#rowKey = rowKey;
    this.#emptyText = emptyText;
    this.#body = el("tbody", { role: "rowgroup" });
    this.#empty = el("p", { class: "empty" }, emptyText);
    const heads = columns.map(({ title, kind }) =>
      el("th", { scope: "col", role: "columnheader", class: kind ?? null }, title));
    this.element = el("div", { class: "table" },
      el("table", { role: "table" },
        el("caption", { class: "sr" }, caption),
        el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads)),
        this.#body),
      this.#empty);
  }

  update(rows, emptyText = this.#emptyText) {
    const seen = new Set();
    let before = null;
    for (const row of rows) {
      const key = this.#rowKey(row);
      if (seen.has(key)) continue;
      seen.add(key);
      let shown = this.#rows.get(key);
      if (!shown) {
        shown = this.#made();
        this.#rows.set(key, shown);
      }
      this.#fill(shown, row);
      const next = before ? before.nextSibling : this.#body.firstChild;
      if (next !== shown.element) this.#body.insertBefore(shown.element, next);
      before = shown.element;
    }
    for (const [key, { element }] of this.#rows) {
      if (!seen.has(key)) {
        element.remove();
        this.#rows.delete(key);
      }
    }
    setText(this.#empty, emptyText);
    this.#empty.hidden = seen.size > 0;
    this.element.firstChild.hidden = seen.size === 0;
  }

  #made() {
    const cells = this.#columns.map(({ title, kind }, index) =>
      el(index === 0 ? "th" : "td", {
        role: index === 0 ? "rowheader" : "cell",
        scope: index === 0 ? "row" : null,
        class: kind ?? null,
        "data-label": title,
      }));
    return { element: el("tr", { role: "row" }, ...cells), cells, keys: [] };
  }

  #fill({ cells, keys, element }, row) {
    this.#columns.forEach(({ cell, key }, index) => {
      const made = key ? null : cell(row);
      if (typeof made === "string") {
        setText(cells[index], made);
        return;
      }
      const now = key ? key(row) : JSON.stringify(row);
      if (keys[index] === now) return;
      keys[index] = now;
      const content = made ?? cell(row);
      cells[index].replaceChildren(...(Array.isArray(content) ? content : [content]));
    });
    element.className = row.rowClass ?? "";
  }
}

/** A list of terms and what they are, `[term, text or element]` each; null leaves one out. */
export function facts(...entries) {
  return el("dl", { class: "facts" },
    ...entries.filter(Boolean).map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

/** Where a view says that it loads, has nothing, or failed. */
export function notice(kind, text, ...more) {
  return el("p", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null }, text, ...more);
}
