/** The page: connects the form, the message log and the people list with one connection and one channel. */

import { Client, LOCAL } from "./client.js";
import { MessageLog } from "./log.js";
import { People, el } from "./people.js";

const HISTORY_LIMIT = 50;
const DROP_HOLD_MS = 6_000; // long enough to write something elsewhere that is then recovered
const PRESENCE_EVERY_MS = 60_000; // joins and leaves are best effort: ask again now and then
const WAITING_MAX = 20; // messages that may wait for the connection
const DEFAULT_CHANNEL = "lobby";
const STORED_NAME = "roomcast.name";
const STORED_CHANNEL = "roomcast.channel";

const $ = (id) => document.getElementById(id);

let client = null;
let subscription = null;
let name = "";
let instance = { node: "", instances: [] };
let wasLost = false; // the connection, since the last time the channel was subscribed
let waiting = []; // [{id, text}] to publish as soon as the channel is there again
let unseen = 0;

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
});

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
      return ["You may not write in this channel.", false];
    case 111:
      return ["Too many messages at once. Wait a moment.", true];
    default:
      return [`The server refused it: ${message} (${code}).`, true];
  }
}

function explainUnsubscribed({ code, message }) {
  switch (code) {
    case 101:
    case 103:
      return "You may not join this channel.";
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
  $("name").value = name || recall(STORED_NAME);
  $("channel-name").value = subscription?.channel || channelOfHash() || recall(STORED_CHANNEL) || DEFAULT_CHANNEL;
  $("join").classList.toggle("first", !subscription);
  $("join-cancel").hidden = !subscription;
  if (!$("join").open) $("join").showModal();
  const field = error || $("name").value ? $("channel-name") : $("name");
  field.focus();
  field.select();
}

/** Why these two cannot be used, or "". The server decides in the end; this is only quicker. */
function objection(newName, channel) {
  if (!newName) return "Please enter a name.";
  if (!channel) return "Please enter a channel.";
  if (!/^[\x20-\x7e]+$/.test(channel)) return explainUnsubscribed({ code: 107 });
  return "";
}

function join(newName, channel) {
  const isNewName = newName !== name;
  name = newName;
  remember(STORED_NAME, name);
  remember(STORED_CHANNEL, channel);
  if (channelOfHash() !== channel) location.hash = encodeURIComponent(channel);
  if (isNewName || !client) replaceClient();
  if (subscription?.channel !== channel || subscription.state === "unsubscribed") enter(channel);
  if ($("join").open) $("join").close();
  $("text").focus({ preventScroll: true });
}

function replaceClient() {
  client?.disconnect();
  subscription = null;
  log.me = people.me = name;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const next = new Client(`${scheme}://${location.host}/connection/websocket`, { token });
  next.on("state", (detail) => next === client && showState(detail));
  client = next;
  client.connect();
}

async function token() {
  const response = await fetch("/demo/token", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ user: name }),
  });
  if (response.ok) return (await response.json()).token;
  if (response.status === 400) {
    const { error } = await response.json();
    client.disconnect();
    askToJoin(error.message);
  }
  throw new Error(`no token: HTTP ${response.status}`);
}

function enter(channel) {
  if (subscription) client.unsubscribe(subscription);
  log.clear();
  log.busy(true);
  people.clear();
  waiting = [];
  wasLost = false;
  $("channel").textContent = channel;
  showTitle();
  const next = client.subscribe(channel);
  subscription = next;
  // What comes late from a channel that was left must not show up in the next one.
  const on = (type, listener) => next.on(type, (detail) => next === subscription && listener(detail));
  on("subscribed", (detail) => void subscribed(detail));
  on("publication", (publication) => received(publication));
  on("join", (info) => people.joined(info));
  on("leave", (info) => people.left(info));
  on("unsubscribed", (detail) => {
    const words = explainUnsubscribed(detail);
    log.note(words, "bad");
    log.busy(false);
    askToJoin(words);
  });
  showPosition();
}

async function subscribed(detail) {
  const here = subscription;
  const { recovering, recovered, publications, epoch } = detail;
  const missed = log.add(publications, epoch);
  if (recovering) log.note(explainRecovery(detail, missed), recovered ? "good" : "bad");
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
      if (error.code !== LOCAL.CONNECTION_LOST) log.note("This channel's history cannot be read", "");
    }
  }
  log.busy(false);
}

function received(publication) {
  log.add([publication], subscription.epoch, { live: true });
  showPosition();
  if (document.hidden && publication.info?.user !== name) {
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
    }
  }
}

function setStatus(text) {
  $("status-text").textContent = text;
  announce(text);
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

$("text").addEventListener("input", fitComposer);

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

$("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const newName = $("name").value.trim();
  const channel = $("channel-name").value.trim();
  const words = objection(newName, channel);
  if (words) {
    $("join-error").textContent = words;
    $(newName ? "channel-name" : "name").focus();
    return;
  }
  join(newName, channel);
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
  const words = objection(name, channel);
  if (words) askToJoin(name ? words : "");
  else join(name, channel);
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

void loadInstance();
if (recall(STORED_NAME) && !objection(recall(STORED_NAME), channelOfHash())) join(recall(STORED_NAME), channelOfHash());
else askToJoin();
