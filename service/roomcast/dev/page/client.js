/**
 * A small client of the Centrifuge protocol, version 2, in JSON.
 *
 * It keeps one connection and any number of subscriptions, and brings both back after a failure: each
 * subscription remembers (epoch, offset) and asks the server for what it missed. Real applications
 * take the `centrifuge` SDK; this one exists so that the demo page loads nothing from elsewhere, and to show
 * how little the protocol needs.
 *
 * Client events:        "state"  {state, retryAtMs?, code?, reason?},
 *                       "refreshed" {}: a fresh token has replaced the connection's
 * Subscription events:  "subscribed" {recovering, recovered, publications, epoch, offset, positioned},
 *                       "publication" <publication>, "join" <info>, "leave" <info>,
 *                       "suspended" {}, "unsubscribed" {code, message},
 *                       "refreshed" {}: the same for the subscription's token
 */

const REPLY_WAIT_MS = 5_000; // as the official SDKs: after that nobody knows whether it happened
const PING_GRACE_MS = 10_000; // silence beyond the server's ping interval by this much: the socket is dead
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 20_000;
const FRAME_BYTES_MAX = 60_000; // servers close at 65,536 bytes a frame (1009)
const CLOSED_TOO_BIG = 1009;
const REFRESH_AGAIN_MS = 5_000; // the server waits some 25 s beyond the end of a token
const PRIVATE = "$"; // channels that begin so need a subscription token
const TIMER_MAX_MS = 2 ** 31 - 1; // a browser's timers overflow beyond

const ERROR_TOKEN_EXPIRED = 109;
const ERROR_TEMPORARY = 100;
const UNSUBSCRIBE_RESUBSCRIBE_FROM = 2500; // lower codes are final, from here on: subscribe again

/** Codes of our own, below 100 as the protocol reserves them: they never come from a server. */
export const LOCAL = Object.freeze({ TIMEOUT: 1, CONNECTION_LOST: 2, TOO_LARGE: 3, NO_TOKEN: 4 });

/** What a command failed with: the server's error, or one of LOCAL. */
export class ProtocolError extends Error {
  constructor(code, message, temporary = false) {
    super(message);
    this.code = code;
    this.temporary = temporary;
  }
}

/** Thrown by `token` and `subscriptionToken`: asking again would not help. The message is for people. */
export class TokenRefused extends Error {}

/** Full jitter: somewhere in [min, min + 2^attempt · min], never above max. */
export function backoffMs(attempt, random = Math.random) {
  const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(attempt, 16));
  return Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS + random() * ceiling);
}

/** Close codes after which a client must not come back by itself. */
export function isTerminal(code) {
  return (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
}

class Emitter extends EventTarget {
  on(type, listener) {
    this.addEventListener(type, (event) => listener(event.detail));
    return this;
  }

  emit(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * One connection. `token()` answers with a fresh connection token ("" = none), `subscriptionToken(channel)` with one
 * for a private channel; both reject with TokenRefused, or with anything else when it is worth another try.
 */
export class Client extends Emitter {
  state = "disconnected"; // disconnected -> connecting -> connected -> waiting -> connecting …
  id = "";

  #url;
  #token;
  #subscriptionToken;
  #socket = null;
  #subscriptions = new Map(); // channel -> Subscription
  #calls = new Map(); // command id -> {method, resolve, reject, timer}
  #outbox = []; // encoded commands of this tick: they leave in one frame
  #lastId = 0;
  #attempt = 0;
  #generation = 0; // what started before the last change of connection must not act on it
  #retryTimer = 0;
  #silenceTimer = 0;
  #refreshTimer = 0;
  #silenceMs = 0;
  #pong = false;

  constructor(url, { token, subscriptionToken }) {
    super();
    this.#url = url;
    this.#token = token;
    this.#subscriptionToken = subscriptionToken;
  }

  connect() {
    if (this.state === "disconnected" || this.state === "waiting") void this.#open();
  }

  /** Ends the connection for good; subscriptions keep their positions for a later connect(). */
  disconnect() {
    this.#lose();
    this.#setState("disconnected", { code: 0, reason: "" });
  }

  /**
   * As if the network had failed: the socket goes, and the first attempt to come back waits `holdMs`.
   * Positions are kept, so that everything missed meanwhile is recovered.
   */
  drop(holdMs = backoffMs(this.#attempt++)) {
    if (this.state !== "connected") return;
    this.#lose();
    this.#retryIn(holdMs);
  }

  subscribe(channel) {
    const known = this.#subscriptions.get(channel);
    if (known) return known;
    const token = channel.startsWith(PRIVATE) ? () => this.#subscriptionToken(channel) : null;
    const subscription = new Subscription(this, channel, token);
    this.#subscriptions.set(channel, subscription);
    if (this.state === "connected") subscription.start();
    return subscription;
  }

  unsubscribe(subscription) {
    this.#subscriptions.delete(subscription.channel);
    const told = subscription.end();
    if (told && this.#isOpen()) this.#call("unsubscribe", { channel: subscription.channel }).catch(() => {});
  }

  /**
   * One command; resolves with its result, rejects with ProtocolError. After TIMEOUT and CONNECTION_LOST
   * nobody knows whether the server carried it out.
   */
  call(method, params) {
    if (this.state !== "connected") {
      return Promise.reject(new ProtocolError(LOCAL.CONNECTION_LOST, "not connected", true));
    }
    return this.#call(method, params);
  }

  // Connection

  async #open() {
    const generation = this.#lose();
    const current = () => generation === this.#generation;
    this.#setState("connecting");
    let token;
    try {
      token = await this.#token();
    } catch (error) {
      if (!current()) return;
      const refused = { code: LOCAL.NO_TOKEN, reason: String(error.message ?? error) };
      if (error instanceof TokenRefused) this.#setState("disconnected", refused);
      else this.#retryIn(backoffMs(this.#attempt++), refused.code, refused.reason);
      return;
    }
    if (!current()) return;
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    // A server that accepts and says nothing would otherwise keep us here for ever.
    this.#silenceMs = REPLY_WAIT_MS + PING_GRACE_MS;
    this.#watchSilence();
    socket.onopen = () => {
      if (!current()) return;
      // Subscriptions go in the same frame as connect: no round trip is spent on waiting.
      this.#call("connect", { token, name: "roomcast-demo" }).then(
        (result) => current() && this.#connected(result),
        (error) => current() && this.#refused(error),
      );
      for (const subscription of this.#subscriptions.values()) subscription.start((...args) => this.#call(...args));
    };
    socket.onmessage = ({ data }) => current() && this.#receive(data);
    socket.onclose = ({ code, reason }) => current() && this.#closed(code, reason);
  }

  #connected({ client, ping = 0, pong = false, expires = false, ttl = 0 }) {
    this.id = client;
    this.#attempt = 0;
    this.#pong = pong;
    this.#silenceMs = ping ? ping * 1_000 + PING_GRACE_MS : 0;
    this.#watchSilence();
    if (expires) this.#refreshIn(ttl);
    this.#setState("connected");
    // Those that came between the first frame and its answer.
    for (const subscription of this.#subscriptions.values()) void subscription.start();
  }

  #refused(error) {
    // An expired token and a passing failure are worth another try; anything else would fail again.
    const again = error.temporary || error.code < ERROR_TEMPORARY || error.code === ERROR_TOKEN_EXPIRED;
    this.#lose();
    if (again) this.#retryIn(backoffMs(this.#attempt++), error.code, error.message);
    else this.#setState("disconnected", { code: error.code, reason: error.message });
  }

  #closed(code, reason) {
    this.#lose(code === CLOSED_TOO_BIG ? LOCAL.TOO_LARGE : LOCAL.CONNECTION_LOST);
    if (isTerminal(code)) this.#setState("disconnected", { code, reason });
    else this.#retryIn(backoffMs(this.#attempt++), code, reason);
  }

  /** Forgets the socket, fails what waits for an answer, suspends subscriptions. Returns the new generation. */
  #lose(code = LOCAL.CONNECTION_LOST) {
    this.#generation += 1;
    for (const timer of [this.#retryTimer, this.#silenceTimer, this.#refreshTimer]) clearTimeout(timer);
    this.#outbox = [];
    this.#socket?.close();
    this.#socket = null;
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    // The state first: whoever hears of a failed call must not believe that there is a connection.
    if (this.state === "connected") this.state = "waiting";
    for (const { reject, timer } of calls) {
      clearTimeout(timer);
      reject(new ProtocolError(code, code === LOCAL.TOO_LARGE ? "message too large" : "connection lost", true));
    }
    for (const subscription of this.#subscriptions.values()) subscription.suspend();
    return this.#generation;
  }

  #retryIn(delayMs, code = 0, reason = "") {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => void this.#open(), delayMs);
    this.#setState("waiting", { retryAtMs: Date.now() + delayMs, code, reason });
  }

  #refreshIn(ttlS) {
    const generation = this.#generation;
    this.#refreshTimer = setTimeout(async () => {
      try {
        const token = await this.#token();
        if (generation !== this.#generation) return;
        const { expires, ttl } = await this.#call("refresh", { token });
        if (generation !== this.#generation) return;
        if (expires) this.#refreshIn(ttl);
        this.emit("refreshed");
      } catch {
        if (generation === this.#generation) this.#refreshIn(REFRESH_AGAIN_MS / 1_000);
      }
    }, Math.min(ttlS * 1_000, TIMER_MAX_MS));
  }

  #watchSilence() {
    clearTimeout(this.#silenceTimer);
    if (this.#silenceMs) this.#silenceTimer = setTimeout(() => this.#closed(0, "no ping"), this.#silenceMs);
  }

  #setState(state, detail = {}) {
    this.state = state;
    this.emit("state", { state, ...detail });
  }

  // Frames

  #call(method, params) {
    const id = ++this.#lastId;
    const text = JSON.stringify({ id, [method]: params });
    if (new TextEncoder().encode(text).length > FRAME_BYTES_MAX) {
      return Promise.reject(new ProtocolError(LOCAL.TOO_LARGE, "message too large"));
    }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#calls.delete(id);
        reject(new ProtocolError(LOCAL.TIMEOUT, "no answer", true));
      }, REPLY_WAIT_MS);
      this.#calls.set(id, { method, resolve, reject, timer });
      this.#send(text);
    });
  }

  /** Everything said in one tick leaves together, one command a line, in frames that a server accepts. */
  #send(text) {
    if (this.#outbox.push(text) > 1) return;
    queueMicrotask(() => {
      const lines = this.#outbox;
      this.#outbox = [];
      let frame = "";
      for (const line of lines) {
        // Counted in UTF-16 units, at most 3 bytes each.
        if (frame && (frame.length + line.length) * 3 > FRAME_BYTES_MAX) {
          if (this.#isOpen()) this.#socket.send(frame);
          frame = "";
        }
        frame += (frame && "\n") + line;
      }
      if (frame && this.#isOpen()) this.#socket.send(frame);
    });
  }

  #isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #receive(frame) {
    this.#watchSilence();
    const generation = this.#generation;
    for (const line of frame.trim().split("\n")) {
      if (generation !== this.#generation) return; // an earlier line ended this connection
      const reply = JSON.parse(line);
      if (reply.id) this.#answer(reply);
      else if (reply.push) this.#push(reply.push);
      else if (this.#pong) this.#send("{}"); // `{}` is a ping, and its own answer
    }
  }

  #answer(reply) {
    const call = this.#calls.get(reply.id);
    if (!call) return; // came after its time
    this.#calls.delete(reply.id);
    clearTimeout(call.timer);
    if (reply.error) {
      const { code, message, temporary = false } = reply.error;
      call.reject(new ProtocolError(code, message, temporary));
    } else {
      call.resolve(reply[call.method] ?? {});
    }
  }

  #push({ channel, pub, join, leave, unsubscribe, disconnect }) {
    if (disconnect) {
      this.#closed(disconnect.code, disconnect.reason);
      return;
    }
    const subscription = this.#subscriptions.get(channel);
    if (!subscription) return;
    if (pub) subscription.publication(pub);
    else if (join) subscription.emit("join", join.info);
    else if (leave) subscription.emit("leave", leave.info);
    else if (unsubscribe) subscription.unsubscribed(unsubscribe.code, unsubscribe.reason);
  }
}

/** One channel. `epoch` and `offset` say up to where it is known. */
export class Subscription extends Emitter {
  state = "suspended"; // suspended -> subscribing -> subscribed; unsubscribed is final
  epoch = "";
  offset = 0;

  #client;
  #token; // asks for a subscription token; null: the channel needs none
  #recover = false; // after the first success: ask for what was missed
  #attempt = 0;
  #timer = 0; // of the next attempt, or once subscribed of the next refresh
  #turn = 0; // an answer to an attempt that was given up must not count for the next one
  #early = null; // pushes that came in the frame of the reply, before its promise was heard

  constructor(client, channel, token) {
    super();
    this.#client = client;
    this.#token = token;
    this.channel = channel;
  }

  publish(data) {
    return this.#client.call("publish", { channel: this.channel, data });
  }

  /** The newest `limit` publications, oldest first: {publications, epoch, offset}. */
  async history(limit) {
    const result = await this.#client.call("history", { channel: this.channel, limit, reverse: true });
    return { ...result, publications: (result.publications ?? []).reverse() };
  }

  /** Connections in the channel, by id: {user, client, conn_info?}. */
  async presence() {
    return (await this.#client.call("presence", { channel: this.channel })).presence ?? {};
  }

  // Called by Client

  async start(call = (...args) => this.#client.call(...args)) {
    if (this.state !== "suspended") return;
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    this.state = "subscribing";
    this.#early = [];
    const position = this.#recover ? { recover: true, epoch: this.epoch, offset: this.offset } : {};
    try {
      const params = { channel: this.channel, positioned: true, recoverable: true, join_leave: true, ...position };
      if (this.#token) {
        const token = await this.#token();
        if (turn !== this.#turn) return;
        if (token) params.token = token;
      }
      const result = await call("subscribe", params);
      if (turn === this.#turn) this.#subscribed(result);
    } catch (error) {
      if (turn !== this.#turn) return; // suspended or ended meanwhile
      this.#stop("suspended");
      if (error instanceof TokenRefused) this.unsubscribed(LOCAL.NO_TOKEN, error.message);
      else if (!(error instanceof ProtocolError)) this.#againIn(backoffMs(this.#attempt++)); // no token, for now
      else if (error.code === LOCAL.TIMEOUT) this.#client.drop(); // a connection that does not answer is none
      else if (error.temporary || error.code === ERROR_TOKEN_EXPIRED) this.#againIn(backoffMs(this.#attempt++));
      else this.unsubscribed(error.code, error.message);
    }
  }

  publication(pub) {
    if (this.#early) {
      this.#early.push(pub);
      return;
    }
    if (this.state !== "subscribed") return;
    if (pub.offset) this.offset = pub.offset;
    this.emit("publication", pub);
  }

  suspend() {
    if (this.state === "unsubscribed") return;
    this.#stop("suspended");
    this.emit("suspended");
  }

  unsubscribed(code, message) {
    if (this.state === "unsubscribed") return;
    if (code >= UNSUBSCRIBE_RESUBSCRIBE_FROM) {
      this.suspend();
      void this.start();
      return;
    }
    this.#stop("unsubscribed");
    this.emit("unsubscribed", { code, message });
  }

  /** Returns whether the server believes that we are subscribed. */
  end() {
    const told = this.state === "subscribed" || this.state === "subscribing";
    this.#stop("unsubscribed");
    return told;
  }

  #stop(state) {
    clearTimeout(this.#timer);
    this.#turn += 1;
    this.#early = null;
    this.state = state;
  }

  #subscribed(result) {
    const { epoch = "", offset = 0, publications = [], recovered = false, positioned = false } = result;
    const recovering = this.#recover;
    this.state = "subscribed";
    this.#attempt = 0;
    this.#recover = result.recoverable === true;
    this.epoch = epoch;
    this.offset = publications.at(-1)?.offset ?? offset;
    if (result.expires) this.#refreshIn(result.ttl);
    this.emit("subscribed", { recovering, recovered, publications, epoch, offset, positioned });
    const early = this.#early ?? [];
    this.#early = null;
    for (const pub of early) this.publication(pub);
  }

  #refreshIn(ttlS) {
    const turn = this.#turn;
    this.#timer = setTimeout(async () => {
      try {
        const token = await this.#token();
        if (turn !== this.#turn) return;
        const { expires, ttl } = await this.#client.call("sub_refresh", { channel: this.channel, token });
        if (turn !== this.#turn) return;
        if (expires) this.#refreshIn(ttl);
        this.emit("refreshed");
      } catch {
        if (turn === this.#turn) this.#refreshIn(REFRESH_AGAIN_MS / 1_000);
      }
    }, Math.min(ttlS * 1_000, TIMER_MAX_MS));
  }

  #againIn(delayMs) {
    this.#timer = setTimeout(() => void this.start(), delayMs);
  }
}
