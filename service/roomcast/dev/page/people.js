/** Who is in the channel: connections from presence, joins and leaves, grouped by user. */

const HUES = 8; // classes hue-0 … hue-7 of the style sheet
const PERMISSION_DENIED = 103;
const NOT_AVAILABLE = 108;
const GUEST_CHARS = 4; // of a connection's id: enough to tell guests apart

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

/** How a connection wants to be called: the name in its token, else its user id; guests by their connection. */
export function nameOf({ user = "", client = "", conn_info: info }) {
  return (typeof info?.name === "string" && info.name) || user || `Guest ${client.slice(0, GUEST_CHARS)}`.trim();
}

/** Connections of one user are one person; each guest is a person of its own. */
export function personOf({ user = "", client = "" }) {
  return user ? `user ${user}` : `guest ${client}`;
}

export class People {
  #isMe = () => false;
  #told;
  #list;
  #counts;
  #note;
  #members = new Map(); // connection id -> {person, name, mine}
  #since = null; // joins and leaves while a presence answer is under way: they are newer than it

  /** `told(change, person, name)` hears that somebody "joined" or "left", whatever the number of their connections. */
  constructor({ list, counts, note, told }) {
    this.#told = told;
    this.#list = list;
    this.#counts = counts;
    this.#note = note;
  }

  /** `isMe(info)` says which connections are the reader's own. */
  clear(isMe) {
    this.#isMe = isMe;
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
      this.#members = new Map(Object.entries(presence).map(([id, info]) => [id, this.#member(info)]));
      for (const apply of since) apply();
      this.#note.hidden = true;
    } catch (error) {
      if (this.#since !== since) return;
      this.#note.textContent =
        error.code === NOT_AVAILABLE || error.code === PERMISSION_DENIED
          ? "This channel does not tell who is here."
          : "Who is here could not be asked for. The page asks again within a minute.";
      this.#note.hidden = this.#members.size > 0;
    }
    this.#since = null;
    this.#render();
  }

  joined(info) {
    const isNews = !this.#isHere(info) && !this.#isMe(info);
    this.#apply(() => this.#members.set(info.client, this.#member(info)));
    if (isNews) this.#told("joined", personOf(info), nameOf(info));
  }

  left(info) {
    const wasHere = this.#members.has(info.client);
    this.#apply(() => this.#members.delete(info.client));
    if (wasHere && !this.#isHere(info) && !this.#isMe(info)) this.#told("left", personOf(info), nameOf(info));
  }

  #isHere(info) {
    const person = personOf(info);
    return [...this.#members.values()].some((member) => member.person === person);
  }

  #member(info) {
    return { person: personOf(info), name: nameOf(info), mine: this.#isMe(info) };
  }

  #apply(change) {
    change();
    this.#since?.push(change);
    this.#render();
  }

  #render() {
    const people = new Map(); // person -> {name, mine, connections}
    for (const { person, name, mine } of this.#members.values()) {
      const known = people.get(person);
      if (known) known.connections += 1;
      else people.set(person, { name, mine, connections: 1 });
    }
    const sorted = [...people.values()].sort(
      (one, other) => other.mine - one.mine || one.name.localeCompare(other.name),
    );
    this.#list.replaceChildren(...sorted.map((person) => this.#row(person)));
    for (const node of this.#counts) node.textContent = String(people.size);
  }

  #row({ name, mine, connections }) {
    const [initial = "?"] = name;
    const row = el(
      "li",
      {},
      el("span", { className: `avatar ${hue(name)}`, ariaHidden: "true" }, initial.toUpperCase()),
      el("span", { className: "name", dir: "auto" }, name),
    );
    if (mine) row.append(el("span", { className: "tag" }, "you"));
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
