/** The page: connects the form, the message log and the people list with one connection and one channel. */

import { Client, LOCAL } from "./client.js";
import { MessageLog } from "./log.js";
import { People, el, hue, nameOf } from "./people.js";
import { Tokens } from "./tokens.js";
import { Typing } from "./typing.js";

const HISTORY_LIMIT = 50;
const DROP_HOLD_MS = 6_000; // long enough to write something elsewhere that is then recovered
const PRESENCE_EVERY_MS = 60_000; // joins and leaves are best effort: ask again now and then
const WAITING_MAX = 20; // messages that may wait for the connection
const PRIVATE = "$"; // channels that begin so need a subscription token
const UNAUTHORIZED = 101;
const PERMISSION_DENIED = 103;
const NOT_AVAILABLE = 108;
const INVALID_TOKEN = 3500;
const STORED_NAME = "roomcast.name";
const STORED_GUEST = "roomcast.guest";
const STORED_CHANNEL = "roomcast.channel";

const $ = (id) => document.getElementById(id);

let client = null;
let subscription = null;
let instance = { node: "", instances: [], insecure: false, signs: true, channel: "lobby" };
let wasLost = false; // the connection, since the last time the channel was subscribed
let isWarned = false; // that the private room is none
let waiting = []; // [{id, text}] to publish as soon as the channel is there again
let unseen = 0;

const tokens = new Tokens();

const log = new MessageLog({
  scroller: $("log"),
  list: $("messages"),
  outbox: $("outbox"),
  newer: $("newer"),
  empty: $("empty"),
  retry: (id, text) => void publish(id, text),
  edit: (text) => {
    $("text").value = $("text").value ? `${text}\n${$("text").value}` : text;
    fitComposer();
    $("text").focus();
  },
});

const people = new People({
  list: $("people"),
  counts: [$("people-count"), $("people-total")],
  note: $("people-note"),
  told: (change, person, name) => log.coming(change, person, name),
});

const typing = new Typing({ line: $("typing"), words: $("typing-words"), note: $("typing-note") });

/** Whether that connection is the reader's: any of the user's, or a guest's own. */
function isMe({ user = "", client: connection = "" }) {
  return tokens.name ? user === tokens.name : !user && connection === client?.id;
}

// What people read

/** What went wrong with a message, and whether the same message may succeed later. */
function explainPublish({ code, message }) {
  switch (code) {
    case LOCAL.TIMEOUT:
    case 100:
      return ["Not confirmed: the server did not say whether it has this.", true];
    case LOCAL.CONNECTION_LOST:
      return ["Not confirmed: the connection was lost before the server answered.", true];
    case LOCAL.TOO_LARGE:
    case 106:
      return ["Too large to send. Make it shorter.", false];
    case 103:
      return [
        tokens.name
          ? "Nobody may write in this channel from here: its options do not allow it."
          : "Guests may not write in this channel. Sign in, then send it again.",
        !tokens.name,
      ];
    case 111:
      return ["Too many messages at once. Wait a moment.", true];
    default:
      return [`The server refused it: ${message} (${code}).`, true];
  }
}

function explainUnsubscribed({ code, message }, channel) {
  switch (code) {
    case LOCAL.NO_TOKEN:
      return message;
    case UNAUTHORIZED:
    case PERMISSION_DENIED:
      return explainRefusal(channel);
    case 102:
      return "There is no such channel: the part before the colon is not a namespace that this server knows.";
    case 106:
      return "This is one channel too many for one connection.";
    case 107:
      return "This is no name for a channel. Use up to 255 plain letters, digits and signs.";
    case 2000:
      return "The server took you out of this channel.";
    default:
      return `The server ended the subscription: ${message || "no reason given"} (${code}).`;
  }
}

function explainRefusal(channel) {
  if (channel.startsWith(PRIVATE)) {
    return tokens.name
      ? "The server did not accept the token for this private room. Sign in again; all instances need the same secret."
      : "This room is private: the server refused you, because you have no token for it. Enter a name and sign in to get one.";
  }
  return tokens.name
    ? `You may not join this channel: this server's configuration does not allow it. Try ${instance.channel}.`
    : "Guests may not join this channel. Enter a name and sign in.";
}

/** Why the server does not take us at all, if signing in (again) would help. */
function explainDisconnected({ code, reason }) {
  if (code === LOCAL.NO_TOKEN) return reason;
  if (code === UNAUTHORIZED) return "This server lets in nobody without a token. Enter a name and sign in.";
  if (code === INVALID_TOKEN) return "The server did not accept the token. Sign in again; all instances need the same secret.";
  return "";
}

function explainRecovery({ recovered }, missed) {
  const back = wasLost ? "Reconnected" : "Caught up";
  if (!recovered) return `${back}: the history could not be recovered, these are the newest messages`;
  if (missed === 0) return `${back}: nothing was missed`;
  return `${back}: ${missed} missed ${missed === 1 ? "message" : "messages"} recovered`;
}

function announce(text) {
  $("announce").textContent = text;
}

// Joining

function channelOfHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage may be forbidden; then nothing is remembered.
  }
}

function recall(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function askToJoin(error = "") {
  $("join-error").textContent = error;
  $("name").value = tokens.name || recall(STORED_NAME);
  $("channel-name").value = subscription?.channel || channelOfHash() || recall(STORED_CHANNEL) || instance.channel;
  showChoice();
  $("join").classList.toggle("first", !subscription);
  $("join-cancel").hidden = !subscription;
  if (!$("join").open) $("join").showModal();
  const needsName = !$("name").value || (error && !tokens.name);
  const field = needsName ? $("name") : $("channel-name");
  field.focus();
  field.select();
}

/** The channel's name is what counts; the check box only says what its first sign means. */
function showChoice() {
  $("private").checked = $("channel-name").value.trim().startsWith(PRIVATE);
  $("name-hint").textContent = instance.signs
    ? "The server signs a token for this name."
    : "This server has no client.token.hmac_secret_key, so it cannot sign a token for you: join as a guest.";
  $("private-hint").textContent = instance.insecure
    ? "Its name begins with $. Not private here: this development server is insecure, anybody may join."
    : "Its name begins with $. Joining takes a token for this room alone, signed for whoever is signed in.";
}

/** Why these two cannot be used, or "". The server decides in the end; this is only quicker. */
function objection(channel) {
  if (!channel || channel === PRIVATE) return "Please enter a channel.";
  if (!/^[\x20-\x7e]+$/.test(channel)) return explainUnsubscribed({ code: 107 });
  return "";
}

/** `name` "": as a guest. */
function join(name, channel) {
  remember(STORED_NAME, name || recall(STORED_NAME));
  remember(STORED_GUEST, name ? "" : "yes");
  remember(STORED_CHANNEL, channel);
  if (channelOfHash() !== channel) location.hash = encodeURIComponent(channel);
  if (name !== tokens.name || !client || client.state === "disconnected") replaceClient(name);
  if (subscription?.channel !== channel || subscription.state === "unsubscribed") enter(channel);
  if ($("join").open) $("join").close();
  $("text").focus({ preventScroll: true });
}

function replaceClient(name) {
  leave();
  tokens.become(name);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const next = new Client(`${scheme}://${location.host}/connection/websocket`, {
    token: () => tokens.connection(),
    subscriptionToken: (channel) => tokens.subscription(channel),
  });
  next.on("state", (detail) => next === client && showState(detail));
  next.on("refreshed", () => {
    if (next !== client) return;
    tokens.renewed += 1;
    showMe();
  });
  client = next;
  client.connect();
  showMe();
}

/** Ends the connection, and forgets what it showed. */
function leave() {
  const last = client;
  client = null;
  typing.leave();
  last?.disconnect();
  subscription = null;
  log.clear("", isMe);
  people.clear(isMe);
}

function signOut() {
  leave();
  showState({ state: "disconnected" });
  tokens.become("");
  remember(STORED_NAME, "");
  remember(STORED_GUEST, "");
  askToJoin();
}

function enter(channel) {
  if (subscription) client.unsubscribe(subscription);
  log.clear(tokens.name || "Guest", isMe);
  log.busy(true);
  people.clear(isMe);
  waiting = [];
  wasLost = false;
  isWarned = false;
  tokens.renewedForRoom = 0;
  showMe();
  $("channel").textContent = channel;
  showTitle();
  showPrivacy();
  const next = client.subscribe(channel);
  subscription = next;
  // What comes late from a channel that was left must not show up in the next one.
  const on = (type, listener) => next.on(type, (detail) => next === subscription && listener(detail));
  on("subscribed", (detail) => void subscribed(detail));
  on("publication", (publication) => received(publication));
  on("join", (info) => people.joined(info));
  on("refreshed", () => {
    tokens.renewedForRoom += 1;
    showMe();
  });
  on("leave", (info) => {
    people.left(info);
    typing.done(info.client);
  });
  on("unsubscribed", (detail) => {
    const words = explainUnsubscribed(detail, channel);
    typing.leave();
    log.note(words, "bad");
    log.busy(false);
    askToJoin(words);
  });
  typing.enter(client, channel, isMe);
  showPosition();
}

/** What the first sign of the channel's name means on this server. */
function showPrivacy() {
  const isPrivate = ($("channel").textContent ?? "").startsWith(PRIVATE);
  $("privacy").hidden = !isPrivate;
  $("privacy").classList.toggle("open-to-all", instance.insecure);
  $("privacy-text").textContent = instance.insecure ? "Open to all" : "Private";
  $("privacy").title = instance.insecure
    ? "This server is insecure, for development: anybody may join a private room here"
    : "Only who has a token for this room may join it";
}

async function subscribed(detail) {
  const here = subscription;
  const { recovering, recovered, publications, epoch } = detail;
  const missed = log.add(publications, epoch);
  // A channel without history has nothing to recover.
  if (recovering && detail.positioned) log.note(explainRecovery(detail, missed), recovered ? "good" : "bad");
  if (!isWarned && instance.insecure && here.channel.startsWith(PRIVATE)) {
    isWarned = true;
    log.note("Not private here: this development server is insecure and lets anybody join. Start it with --config and client.insecure off to close such rooms.", "bad");
  }
  wasLost = false;
  showPosition();
  void people.load(() => here.presence());
  sendWaiting();
  if (!recovered) {
    try {
      const history = await here.history(HISTORY_LIMIT);
      if (here !== subscription) return;
      log.add(history.publications, history.epoch);
    } catch (error) {
      if (here !== subscription) return;
      if (error.code === NOT_AVAILABLE) log.note("This channel keeps no history: what is written now is all there is");
      else if (error.code !== LOCAL.CONNECTION_LOST) log.note("This channel's history cannot be read");
    }
  }
  log.busy(false);
}

function received(publication) {
  log.add([publication], subscription.epoch, { live: true });
  showPosition();
  const { info } = publication;
  if (info) typing.done(info.client, publication.data?.id);
  if (document.hidden && !(info && isMe(info))) {
    unseen += 1;
    showTitle();
  }
}

// Sending

function submit() {
  const text = $("text").value.trim();
  if (!text || !subscription) return;
  if (waiting.length >= WAITING_MAX) {
    announce("Too many messages wait for the connection already.");
    return;
  }
  $("text").value = "";
  fitComposer();
  const id = messageId();
  typing.sent(id);
  log.send(id, text);
  void publish(id, text);
}

/** Names the message, so that it is recognised when it comes back. Not randomUUID: that needs https. */
function messageId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(3)), (part) => part.toString(36)).join("");
}

async function publish(id, text) {
  if (subscription.state !== "subscribed") {
    waiting.push({ id, text });
    log.waiting(id);
    return;
  }
  try {
    await subscription.publish({ id, text });
    log.acknowledged(id);
  } catch (error) {
    log.failed(id, ...explainPublish(error));
  }
}

function sendWaiting() {
  const now = waiting;
  waiting = [];
  for (const { id, text } of now) void publish(id, text);
}

function fitComposer() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

// Connection

let countdown = 0;

function showState({ state, retryAtMs = 0, code = 0, reason = "" }) {
  clearInterval(countdown);
  $("status").dataset.state = state;
  const drop = $("drop");
  drop.disabled = state === "connecting";
  if (state === "connected") {
    drop.textContent = "Drop connection";
    setStatus("Connected");
    showMe();
    void loadInstance();
  } else if (state === "connecting") {
    setStatus(wasLost ? "Reconnecting…" : "Connecting…");
  } else {
    wasLost = true;
    if (state === "waiting") {
      drop.textContent = "Reconnect now";
      const tick = () => {
        const seconds = Math.ceil((retryAtMs - Date.now()) / 1_000);
        $("status-text").textContent = seconds > 0 ? `Reconnecting in ${seconds} s` : "Reconnecting…";
      };
      tick();
      countdown = setInterval(tick, 1_000);
      announce("Connection lost. Reconnecting.");
    } else {
      drop.textContent = "Connect again";
      setStatus(code ? `Disconnected: ${reason || code}` : "Disconnected");
      const words = explainDisconnected({ code, reason });
      if (words) askToJoin(words);
    }
  }
}

function setStatus(text) {
  $("status-text").textContent = text;
  announce(text);
}

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** Who the reader is to the server, and for how long. */
function showMe() {
  const name = tokens.name || nameOf({ client: client?.id });
  $("me-avatar").textContent = name[Symbol.iterator]().next().value.toUpperCase();
  $("me-avatar").className = `avatar ${hue(name)}`;
  $("me-name").textContent = name;
  $("sign").textContent = tokens.name ? "Sign out" : "Sign in";
  if (!tokens.name) {
    $("me-token").textContent = instance.insecure
      ? "A guest, without a token. None is needed: this development server is insecure."
      : "A guest, without a token. Private rooms need one: sign in.";
  } else if (tokens.expiresAtMs) {
    const renewed = tokens.renewed ? `, renewed ${times(tokens.renewed)}` : "";
    const room = tokens.renewedForRoom ? ` This room's own token: renewed ${times(tokens.renewedForRoom)}.` : "";
    $("me-token").textContent = `Signed in with a token until ${clock.format(tokens.expiresAtMs)}${renewed}. The page renews it by itself.${room}`;
  } else {
    $("me-token").textContent = "Signing in…";
  }
}

function times(count) {
  return count === 1 ? "once" : `${count} times`;
}

function showPosition() {
  const { offset = 0, epoch = "" } = subscription ?? {};
  $("position").textContent = offset ? `#${offset}` : "–";
  $("epoch").textContent = epoch || "–";
  $("epoch").title = epoch;
}

function showTitle() {
  const channel = subscription?.channel ?? $("channel").textContent;
  document.title = `${unseen ? `(${unseen}) ` : ""}${channel ? `${channel} · ` : ""}roomcast`;
}

// Instances

async function loadInstance() {
  try {
    const response = await fetch("/demo/info");
    if (!response.ok) return;
    instance = await response.json();
  } catch {
    return; // shown as it was: the connection's own state says what is wrong
  }
  showInstances();
  showPrivacy();
  showMe();
}

/** Links keep the host that was used to come here, if the server itself only knows a loopback address. */
function addressOf(url) {
  const address = new URL(url);
  if (["127.0.0.1", "localhost", "[::1]"].includes(address.hostname)) address.hostname = location.hostname;
  address.hash = location.hash;
  return address;
}

function showInstances() {
  const addresses = instance.instances.map(({ url }) => addressOf(url));
  $("instance-name").textContent = location.port ? `:${location.port}` : location.host;
  $("instance").title = `Node ${instance.node}`;
  $("instances").replaceChildren(
    ...addresses.map((address) => {
      if (address.origin === location.origin) {
        return el(
          "li",
          { className: "here" },
          el("span", { className: "address" }, address.host),
          el("span", { className: "tag" }, "serves you"),
          el("span", { className: "node", title: instance.node }, instance.node),
        );
      }
      const link = el("a", { href: address.href, target: "_blank", rel: "noopener" }, el("span", { className: "address" }, address.host));
      link.append(el("span", { className: "open", ariaHidden: "true" }, "open ↗"), el("span", { className: "sr" }, " opens in a new tab"));
      return el("li", {}, link);
    }),
  );
}

// Wiring

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  $("text").focus();
});

$("text").addEventListener("keydown", (event) => {
  // Enter that ends the composition of a character is not meant for us.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});

$("text").addEventListener("input", () => {
  fitComposer();
  if ($("text").value.trim()) typing.typed();
});

document.addEventListener("keydown", (event) => {
  if ($("join").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const isWriting = event.target.matches("input, textarea");
  if (event.key === "/" && !isWriting) {
    event.preventDefault();
    $("text").focus();
  } else if (event.key === "Escape") {
    if ($("people-toggle").getAttribute("aria-expanded") === "true") togglePeople(false);
    else if (isWriting) $("log").focus();
  }
});

function togglePeople(isOpen) {
  $("people-toggle").setAttribute("aria-expanded", String(isOpen));
  document.body.classList.toggle("people-open", isOpen);
  if (!isOpen) $("people-toggle").focus();
}

$("log").addEventListener("pointerdown", () => document.body.classList.contains("people-open") && togglePeople(false));

$("people-toggle").addEventListener("click", () => {
  togglePeople($("people-toggle").getAttribute("aria-expanded") !== "true");
});

$("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address's hash is the channel
  $("text").focus();
});

$("change").addEventListener("click", () => askToJoin());

$("sign").addEventListener("click", () => (tokens.name ? signOut() : askToJoin()));

/** `name` "": as a guest. `words`: why that will not do. */
function tryToJoin(name, words) {
  const channel = $("channel-name").value.trim();
  const problem = words || objection(channel);
  if (!problem) {
    join(name, channel);
    return;
  }
  $("join-error").textContent = problem;
  $(words ? "name" : "channel-name").focus();
}

$("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.normalize("NFC").trim();
  tryToJoin(name, name ? "" : "Please enter a name, or join as a guest.");
});

$("guest").addEventListener("click", () => tryToJoin("", ""));

$("channel-name").addEventListener("input", showChoice);

$("private").addEventListener("change", () => {
  const channel = $("channel-name").value.trim();
  const bare = channel.startsWith(PRIVATE) ? channel.slice(PRIVATE.length) : channel;
  $("channel-name").value = $("private").checked ? PRIVATE + bare : bare;
});

$("join-cancel").addEventListener("click", () => $("join").close());

$("join").addEventListener("cancel", (event) => {
  if (!subscription) event.preventDefault(); // nothing to go back to
});

$("drop").addEventListener("click", () => {
  if (client?.state === "connected") client.drop(DROP_HOLD_MS);
  else client?.connect();
});

window.addEventListener("hashchange", () => {
  const channel = channelOfHash();
  if (!channel || channel === subscription?.channel) return;
  const words = objection(channel);
  if (words || !client) askToJoin(words);
  else join(tokens.name, channel);
});

// The network is back, or somebody looks again: no reason to sit out a back-off.
window.addEventListener("online", () => client?.state === "waiting" && client.connect());

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  unseen = 0;
  showTitle();
});

setInterval(() => {
  const here = subscription;
  if (here?.state === "subscribed" && !document.hidden) void people.load(() => here.presence());
}, PRESENCE_EVERY_MS);

await loadInstance();
const isKnown = recall(STORED_NAME) || recall(STORED_GUEST);
if (isKnown && !objection(channelOfHash())) join(recall(STORED_GUEST) ? "" : recall(STORED_NAME), channelOfHash());
else askToJoin();
