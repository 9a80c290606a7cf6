/** The list of messages: what the channel's log holds, in its order, and below it what is being sent. */

import { el, hue, nameOf, personOf } from "./people.js";

const MESSAGES_MAX = 1_000; // shown at once; older ones leave the page
const COMINGS_NAMED_MAX = 3; // in one line
const COMINGS_MAX = 50; // people of whom one line knows
const NEAR_BOTTOM_PX = 80;
const GROUP_GAP_MS = 5 * 60_000; // a pause this long starts a new group of the same author

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

/** What somebody published as words: our own shape, a bare string, or whatever JSON it is. */
function textOf(data) {
  if (typeof data === "string") return data;
  if (typeof data?.text === "string") return data.text;
  return JSON.stringify(data);
}

function inAll(before, change) {
  if (!before) return change;
  if (change === "joined") return "came back";
  return before === "joined" ? "came and left" : change;
}

/** "Ann and Bob joined, Cem left": who did the same stands together. */
function comings(changes) {
  const together = new Map();
  for (const { name, change } of changes) together.set(change, [...(together.get(change) ?? []), name]);
  return [...together].map(([change, names]) => `${enumeration(names)} ${change}`).join(", ");
}

function enumeration(names) {
  const named = names.slice(0, COMINGS_NAMED_MAX);
  const others = names.length - named.length;
  if (others) named.push(`${others} ${others === 1 ? "other" : "others"}`);
  return named.length > 1 ? `${named.slice(0, -1).join(", ")} and ${named.at(-1)}` : named[0];
}

export class MessageLog {
  #me = ""; // how the reader is called
  #isMe = () => false;
  #scroller;
  #list;
  #outbox;
  #newer;
  #empty;
  #retry;
  #edit;
  #items = []; // in the order shown: {node, epoch, offset, author, own, at} or, for a note, {node, comings?}
  #known = new Set(); // "epoch offset" of what is shown
  #sending = new Map(); // id -> {id, text, node}
  #stuck = true; // to the bottom, unless the reader scrolled up
  #unread = 0;

  /** `retry(id, text)` and `edit(text)` are what the buttons of a message that failed do. */
  constructor({ scroller, list, outbox, newer, empty, retry, edit }) {
    this.#scroller = scroller;
    this.#list = list;
    this.#outbox = outbox;
    this.#newer = newer;
    this.#empty = empty;
    this.#retry = retry;
    this.#edit = edit;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    newer.addEventListener("click", () => {
      this.toBottom();
      scroller.focus({ preventScroll: true });
    });
    // A keyboard that slides in or a composer that grows must not hide the last message.
    new ResizeObserver(() => this.#stuck && this.toBottom()).observe(scroller);
  }

  /** `isMe(info)` says which connections are the reader's own, `me` how that one is called. */
  clear(me, isMe) {
    this.#me = me;
    this.#isMe = isMe;
    this.#items = [];
    this.#known.clear();
    this.#sending.clear();
    this.#list.replaceChildren();
    this.#outbox.replaceChildren();
    this.#empty.hidden = true;
    this.toBottom();
  }

  /** Between busy(true) and busy(false) a screen reader keeps quiet: history is not news. */
  busy(isBusy) {
    this.#scroller.setAttribute("aria-busy", String(isBusy));
    if (!isBusy) this.#empty.hidden = this.#items.length + this.#sending.size > 0;
  }

  /** Adds publications of `epoch`; returns how many were not there yet. `live`: just arrived. */
  add(publications, epoch, { live = false } = {}) {
    let added = 0;
    let others = 0;
    this.#keepPlace(() => {
      for (const publication of publications) {
        const key = publication.offset ? `${epoch} ${publication.offset}` : null;
        if (key && this.#known.has(key)) continue;
        if (key) this.#known.add(key);
        this.#insert(publication, epoch, live);
        added += 1;
        if (!publication.info || !this.#isMe(publication.info)) others += 1;
      }
      this.#trim();
    });
    if (added) this.#empty.hidden = true;
    if (live && others && !this.#stuck) this.#countNew(others);
    return added;
  }

  /** A line about the conversation: tone is "good", "bad" or none. */
  note(text, tone = "") {
    this.#keepPlace(() => {
      const node = el("li", { className: `note ${tone}` }, el("span", {}, text));
      this.#list.append(node);
      this.#items.push({ node });
    });
  }

  /** Says that somebody "joined" or "left". What comes together is one line; who goes and comes back is said so. */
  coming(change, person, name) {
    this.#keepPlace(() => {
      let last = this.#items.at(-1);
      if (!last?.comings || (last.comings.size >= COMINGS_MAX && !last.comings.has(person))) {
        last = { node: el("li", { className: "coming" }), comings: new Map() };
        this.#list.append(last.node);
        this.#items.push(last);
        this.#trim();
      }
      last.comings.set(person, { name, change: inAll(last.comings.get(person)?.change, change) });
      last.node.textContent = comings([...last.comings.values()]);
    });
    this.#empty.hidden = true;
  }

  /** Shows a message of ours that is on its way. */
  send(id, text) {
    const { node, slot } = this.#message({ author: this.#me, text, at: Date.now(), own: true });
    this.#sending.set(id, { text, node, slot });
    this.sending(id);
    this.#outbox.append(node);
    this.#empty.hidden = true;
    this.#regroup();
    this.toBottom();
  }

  sending(id) {
    this.#mark(id, "pending", "···", "Being sent");
  }

  /** For a connection. */
  waiting(id) {
    this.#mark(id, "pending", "waiting", "Will be sent once there is a connection");
  }

  /** The server has it; its offset comes with the publication. */
  acknowledged(id) {
    this.#mark(id, "", "sent", "The server has it");
  }

  /** `again` says whether trying the same message once more can help. */
  failed(id, words, again) {
    if (!this.#mark(id, "failed", "not sent", words)) return;
    const { node, text } = this.#sending.get(id);
    const button = (label, action) => {
      const made = el("button", { type: "button" }, label);
      made.addEventListener("click", action);
      return made;
    };
    const edit = button("Edit", () => {
      this.#sending.delete(id);
      node.remove();
      this.#regroup();
      this.#edit(text);
    });
    const retry = button("Retry", () => {
      this.sending(id);
      this.#retry(id, text);
    });
    const trouble = el("div", { className: "trouble" }, el("span", { role: "alert" }, words), ...(again ? [retry] : []), edit);
    this.#keepPlace(() => node.append(trouble));
  }

  toBottom() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#stuck = true;
    this.#unread = 0;
    this.#newer.hidden = true;
  }

  #mark(id, state, label, title) {
    const message = this.#sending.get(id);
    if (!message) return false;
    const { node, slot } = message;
    node.classList.toggle("pending", state === "pending");
    node.classList.toggle("failed", state === "failed");
    node.querySelector(".trouble")?.remove();
    slot.textContent = label;
    slot.title = title;
    return true;
  }

  #insert(publication, epoch, live) {
    const { data, info, offset = 0, time = 0 } = publication;
    const at = time || (live ? Date.now() : 0);
    const ours = this.#sending.get(data?.id);
    if (ours) {
      // It is in the log now: the line that showed it as being sent gives way to the real one.
      this.#sending.delete(data.id);
      ours.node.remove();
    }
    const author = info ? nameOf(info) : "Server";
    const { node, slot } = this.#message({ author, text: textOf(data), at, own: Boolean(ours || (info && this.#isMe(info))) });
    if (offset) {
      slot.textContent = `#${offset}`;
      slot.title = `Offset ${offset} in epoch ${epoch}`;
    } else {
      slot.textContent = "not kept";
      slot.title = "This channel keeps no history";
    }
    const item = { node, epoch, offset, author: info ? personOf(info) : "", own: node.classList.contains("own"), at };
    let place = this.#items.length;
    if (offset) {
      const isLater = (other) => other.epoch === epoch && other.offset > offset;
      while (place > 0 && isLater(this.#items[place - 1])) place -= 1;
    }
    this.#list.insertBefore(node, this.#items[place]?.node ?? null);
    this.#items.splice(place, 0, item);
    this.#follow(place);
    this.#follow(place + 1);
    this.#regroup();
  }

  #message({ author, text, at, own }) {
    const when = new Date(at);
    const isToday = when.toDateString() === new Date().toDateString();
    const slot = el("span", { className: "offset" });
    const time = at
      ? el("time", { dateTime: when.toISOString(), title: full.format(when) }, (isToday ? clock : dayAndClock).format(when))
      : el("time", { title: "The time is not known" }, "–");
    const node = el(
      "li",
      { className: `message${own ? " own" : ""}` },
      el("p", { className: `author ${hue(author)}` }, own ? "You" : author, el("span", { className: "sr" }, own ? ` (${author})` : "")),
      el("div", { className: "bubble" }, el("p", { className: "text", dir: "auto" }, text), el("p", { className: "meta" }, time, " ", slot)),
    );
    return { node, slot };
  }

  /** A message right after one of the same author belongs to its group, which names the author once. */
  #follow(place) {
    const item = this.#items[place];
    if (item?.author === undefined) return; // a note, or none there
    const before = this.#items[place - 1];
    const follows = before?.author !== undefined && before.author === item.author && item.at - before.at < GROUP_GAP_MS;
    item.node.classList.toggle("follow", follows);
  }

  #regroup() {
    let isOwn = this.#items.at(-1)?.own === true;
    for (const node of this.#outbox.children) {
      node.classList.toggle("follow", isOwn);
      isOwn = true;
    }
  }

  #trim() {
    const surplus = this.#items.splice(0, Math.max(0, this.#items.length - MESSAGES_MAX));
    for (const { node, epoch = "", offset = 0 } of surplus) {
      node.remove();
      this.#known.delete(`${epoch} ${offset}`);
    }
  }

  #keepPlace(change) {
    const wasStuck = this.#stuck;
    change();
    if (wasStuck) this.toBottom();
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#stuck = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
    if (this.#stuck) {
      this.#unread = 0;
      this.#newer.hidden = true;
    }
  }

  #countNew(count) {
    this.#unread += count;
    this.#newer.textContent = this.#unread === 1 ? "1 new message" : `${this.#unread} new messages`;
    this.#newer.hidden = false;
  }
}
