/** Who is in the channel: connections from presence, joins and leaves, grouped by user. */

const HUES = 8; // classes hue-0 … hue-7 of the style sheet

/** An element with properties and children. Strings become text, never markup. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The same colour for the same name, on every page. */
export function hue(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + character.codePointAt(0)) >>> 0;
  return `hue-${sum % HUES}`;
}

/** How a connection wants to be called: the name in its token, else its user id. */
export function nameOf({ user = "", conn_info: info }) {
  return (typeof info?.name === "string" && info.name) || user || "Anonymous";
}

export class People {
  me = "";

  #list;
  #counts;
  #note;
  #members = new Map(); // connection id -> {user, name}
  #since = null; // joins and leaves while a presence answer is under way: they are newer than it

  constructor({ list, counts, note }) {
    this.#list = list;
    this.#counts = counts;
    this.#note = note;
  }

  clear() {
    this.#members.clear();
    this.#since = null;
    this.#note.hidden = true;
    this.#render();
  }

  /** Replaces everybody by what `ask()` answers, and applies what happened meanwhile on top. */
  async load(ask) {
    const since = [];
    this.#since = since;
    try {
      const presence = await ask();
      if (this.#since !== since) return; // a newer question, or another channel
      this.#members = new Map(Object.entries(presence).map(([id, info]) => [id, member(info)]));
      for (const apply of since) apply();
      this.#note.hidden = true;
    } catch {
      if (this.#since !== since) return;
      this.#note.textContent = "Who is here could not be asked for.";
      this.#note.hidden = this.#members.size > 0;
    }
    this.#since = null;
    this.#render();
  }

  joined(info) {
    this.#apply(() => this.#members.set(info.client, member(info)));
  }

  left(info) {
    this.#apply(() => this.#members.delete(info.client));
  }

  #apply(change) {
    change();
    this.#since?.push(change);
    this.#render();
  }

  #render() {
    const users = new Map(); // user -> {user, name, connections}
    for (const { user, name } of this.#members.values()) {
      const known = users.get(user);
      if (known) known.connections += 1;
      else users.set(user, { user, name, connections: 1 });
    }
    const sorted = [...users.values()].sort(
      (one, other) => (other.user === this.me) - (one.user === this.me) || one.name.localeCompare(other.name),
    );
    this.#list.replaceChildren(...sorted.map((person) => this.#row(person)));
    for (const node of this.#counts) node.textContent = String(users.size);
  }

  #row({ user, name, connections }) {
    const [initial = "?"] = name;
    const row = el(
      "li",
      {},
      el("span", { className: `avatar ${hue(name)}`, ariaHidden: "true" }, initial.toUpperCase()),
      el("span", { className: "name", dir: "auto" }, name),
    );
    if (user === this.me) row.append(el("span", { className: "tag" }, "you"));
    if (connections > 1) {
      const title = `${connections} connections`;
      row.append(
        el("span", { className: "tag", title, ariaHidden: "true" }, `×${connections}`),
        el("span", { className: "sr" }, title),
      );
    }
    return row;
  }
}

function member(info) {
  return { user: info.user ?? "", name: nameOf(info) };
}
