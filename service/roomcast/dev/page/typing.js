/**
 * Who is typing. Publications in a channel of its own, in a namespace without history: they go to whoever is there
 * at the moment, and are stored nowhere. They say only that somebody types, never what; and after which message of
 * theirs, because messages, which are stored first, may be heard later than what was said of typing after them.
 */

import { nameOf, personOf } from "./people.js";

const SAY_EVERY_MS = 2_500; // while somebody types, however fast
const SHOWN_MS = 6_000; // after the last word of it: longer than two of them, in case one is lost
const TYPISTS_MAX = 50; // remembered at once
const NAMED_MAX = 2; // in the line
const NAMESPACE = "typing";
const CHANNEL_CHARS_MAX = 255;

/** The channel that belongs to `channel`; as private as that one is. "" when its name would be too long. */
export function typingChannel(channel) {
  const isPrivate = channel.startsWith("$");
  const name = `${isPrivate ? "$" : ""}${NAMESPACE}:${isPrivate ? channel.slice(1) : channel}`;
  return name.length <= CHANNEL_CHARS_MAX ? name : "";
}

export class Typing {
  #line;
  #words;
  #note;
  #client = null;
  #subscription = null;
  #isOpen = false; // the channel is there, and forgets
  #saidAtMs = 0;
  #after = ""; // the id of the reader's last message
  #typists = new Map(); // connection id -> {person, name, after, timer}
  #me = () => false;

  /** `line` is shown while somebody types, with `words` in it; `note` says why there is none. */
  constructor({ line, words, note }) {
    this.#line = line;
    this.#words = words;
    this.#note = note;
  }

  /** Leaves the channel before, if any. `isMe(info)` says which connections are the reader's own. */
  enter(client, channel, isMe) {
    this.leave();
    this.#client = client;
    this.#after = "";
    this.#me = isMe;
    this.#tell("");
    const name = typingChannel(channel);
    if (!name || channel.startsWith(`${NAMESPACE}:`)) return;
    const next = client.subscribe(name);
    this.#subscription = next;
    const on = (type, listener) => next.on(type, (detail) => next === this.#subscription && listener(detail));
    on("subscribed", ({ positioned }) => {
      this.#open(!positioned);
      if (positioned) this.#tell(`Nobody is told who types: the namespace “${NAMESPACE}” keeps a history here.`);
    });
    on("suspended", () => this.#forget());
    on("unsubscribed", ({ code }) => {
      this.#forget();
      this.#tell(
        code === 102
          ? `Nobody is told who types: this server has no namespace “${NAMESPACE}”. Add it to the configuration, without history.`
          : "Nobody is told who types: that channel is closed to you.",
      );
    });
    on("publication", ({ data, info }) => info && data?.typing === true && this.#heard(info, data.after));
  }

  leave() {
    if (this.#subscription) this.#client.unsubscribe(this.#subscription);
    this.#subscription = null;
    this.#forget();
  }

  /** The reader has typed something. */
  typed() {
    const now = Date.now();
    if (!this.#isOpen || now - this.#saidAtMs < SAY_EVERY_MS) return;
    this.#saidAtMs = now;
    // Nobody misses it when it fails: the next one comes soon.
    this.#subscription.publish({ typing: true, after: this.#after }).catch(() => {});
  }

  /** What was typed has been sent as the message `id`: typing again is news at once. */
  sent(id) {
    this.#after = id;
    this.#saidAtMs = 0;
  }

  /** That connection has written the message `id`, or (null) does not type any more. */
  done(connection, id = null) {
    const typist = this.#typists.get(connection);
    if (!typist || (id && typist.after === id)) return;
    clearTimeout(typist.timer);
    this.#typists.delete(connection);
    this.#render();
  }

  #heard(info, after) {
    if (this.#me(info)) return;
    const known = this.#typists.get(info.client);
    if (!known && this.#typists.size >= TYPISTS_MAX) return;
    clearTimeout(known?.timer);
    const timer = setTimeout(() => this.done(info.client), SHOWN_MS);
    this.#typists.set(info.client, { person: personOf(info), name: nameOf(info), after, timer });
    this.#render();
  }

  #open(isOpen) {
    this.#isOpen = isOpen;
    this.#line.dataset.open = String(isOpen);
  }

  #forget() {
    this.#open(false);
    this.#saidAtMs = 0;
    for (const { timer } of this.#typists.values()) clearTimeout(timer);
    this.#typists.clear();
    this.#render();
  }

  #render() {
    const names = [...new Map([...this.#typists.values()].map(({ person, name }) => [person, name])).values()];
    this.#line.classList.toggle("on", names.length > 0);
    const words = names.length ? sentence(names) : "";
    // A screen reader says it again when it is set again.
    if (this.#words.textContent !== words) this.#words.textContent = words;
  }

  #tell(words) {
    this.#note.textContent = words;
    this.#note.hidden = !words;
  }
}

function sentence(names) {
  if (names.length === 1) return `${names[0]} is typing`;
  if (names.length <= NAMED_MAX) return `${names.join(" and ")} are typing`;
  return `${names.length} people are typing`;
}
