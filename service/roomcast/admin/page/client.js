/**
 * The page's end of the Centrifuge protocol, version 2, in JSON: one connection, calls, and channels that are
 * followed. It keeps trying to come back, and says in which state it is.
 *
 * States: "connecting", "open", "lost" {retryAtMs}, "ended" (log in again), "closed".
 */

const ANSWER_MS = 6_000; // the server answers within 4 s
const GRACE_MS = 10_000; // silence beyond the server's pings by this much: the socket is dead
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 15_000;
const UNAUTHORIZED = 101;

/** What a call failed with, in words for people. */
export class CallFailed extends Error {
  constructor(message, code = 0) {
    super(message);
    this.code = code;
  }
}

export class Client {
  #onState;
  #onPublication;
  #socket = null;
  #state = "closed";
  #calls = new Map(); // command id -> {method, resolve, reject, timer}
  #lastId = 0;
  #attempt = 0;
  #generation = 0; // what began before the last change of connection must not act on it
  #retry = 0;
  #silence = 0;
  #silenceMs = 0;
  #followed = ""; // one channel at a time

  /** `onState(state, detail)`, `onPublication(channel, publication)`. */
  constructor(onState, onPublication) {
    this.#onState = onState;
    this.#onPublication = onPublication;
  }

  get isOpen() {
    return this.#state === "open";
  }

  async connect() {
    const generation = this.#drop("connecting");
    let ticket;
    try {
      const answer = await fetch("/admin/ticket", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: "{}",
      });
      if (generation !== this.#generation) return;
      if (answer.status === 401) {
        this.#drop("ended");
        return;
      }
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      ticket = await answer.json();
    } catch {
      if (generation === this.#generation) this.#lost();
      return;
    }
    if (generation !== this.#generation) return;
    this.#open(generation, ticket);
  }

  #open(generation, { ticket, left_s: leftS }) {
    const scheme = window.location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${window.location.host}/admin/connection`);
    const current = () => generation === this.#generation;
    this.#socket = socket;
    this.#silenceMs = ANSWER_MS + GRACE_MS;
    this.#watch();
    socket.onopen = async () => {
      if (!current()) return;
      try {
        const result = await this.#call("connect", { data: { ticket }, name: "roomcast-admin" });
        if (!current()) return;
        this.#attempt = 0;
        this.#silenceMs = (result.ping ?? 25) * 1_000 + GRACE_MS;
        this.#watch();
        this.#set("open", { endsAtMs: Date.now() + leftS * 1_000 });
        if (this.#followed) void this.#subscribe(this.#followed);
      } catch (error) {
        if (!current()) return;
        // The ticket was too old for this server's clock, or the password has changed: the next one tells.
        if (error.code === UNAUTHORIZED) this.#attempt = Math.max(this.#attempt, 2);
        this.#lost();
      }
    };
    socket.onmessage = ({ data }) => current() && this.#receive(data);
    socket.onclose = () => current() && this.#lost();
  }

  /** Ends for good. */
  close() {
    this.#drop("closed");
  }

  /** Tries at once, when it waits for the next attempt. */
  retry() {
    if (this.#state === "lost") void this.connect();
  }

  /** One method of the server; resolves with its answer, rejects with CallFailed. */
  async ask(method, data = {}) {
    if (!this.isOpen) throw new CallFailed("There is no connection to the server.");
    return (await this.#call("rpc", { method, data })).data;
  }

  /** Follows `channel` instead of the one that was followed; "" = none. */
  async follow(channel) {
    if (this.#followed && this.isOpen) {
      await this.#call("unsubscribe", { channel: this.#followed }).catch(() => {});
    }
    this.#followed = channel;
    if (channel && this.isOpen) await this.#subscribe(channel);
  }

  async #subscribe(channel) {
    await this.#call("subscribe", { channel });
  }

  #call(method, params) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#calls.delete(id);
        reject(new CallFailed("The server did not answer in time."));
      }, ANSWER_MS);
      this.#calls.set(id, { method, resolve, reject, timer });
      this.#socket.send(JSON.stringify({ id, [method]: params }));
    });
  }

  #receive(frame) {
    this.#watch();
    const generation = this.#generation;
    for (const line of frame.trim().split("\n")) {
      if (generation !== this.#generation) return;
      const reply = JSON.parse(line);
      if (reply.id) this.#answer(reply);
      else if (reply.push) this.#push(reply.push);
      else this.#socket.send("{}"); // a ping, and its answer
    }
  }

  #answer({ id, error, ...reply }) {
    const call = this.#calls.get(id);
    if (!call) return;
    this.#calls.delete(id);
    clearTimeout(call.timer);
    if (error) call.reject(new CallFailed(error.message, error.code));
    else call.resolve(reply[call.method] ?? {});
  }

  #push({ channel, pub, unsubscribe, disconnect }) {
    if (pub) this.#onPublication(channel, pub);
    else if (disconnect) this.#lost();
    else if (unsubscribe && channel === this.#followed) void this.#subscribe(channel).catch(() => {});
  }

  #lost() {
    this.#drop("");
    const ceiling = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** Math.min(this.#attempt++, 8));
    const delayMs = RETRY_MIN_MS / 2 + Math.random() * ceiling;
    this.#retry = setTimeout(() => void this.connect(), delayMs);
    this.#set("lost", { retryAtMs: Date.now() + delayMs });
  }

  /** Forgets the socket, and fails what waits for an answer. Returns the new generation. */
  #drop(state) {
    this.#generation += 1;
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    this.#socket?.close();
    this.#socket = null;
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    if (state) this.#set(state);
    else this.#state = "lost";
    for (const { reject, timer } of calls) {
      clearTimeout(timer);
      reject(new CallFailed("The connection was lost."));
    }
    return this.#generation;
  }

  #watch() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lost(), this.#silenceMs);
  }

  #set(state, detail = {}) {
    this.#state = state;
    this.#onState(state, detail);
  }
}
