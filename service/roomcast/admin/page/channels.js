/** The busiest channels, and one channel: who is in it, what it keeps, what comes now, and what is published. */

import { ask } from "./dialog.js";
import { el, facts, LiveTable, name, notice, setText, visible } from "./dom.js";
import { clock, count, figure, hex, many, span, when } from "./format.js";

const BUSIEST_MS = 5_000;
const ROWS_MAX = 50; // of the busiest
const LIVE_MAX = 100; // publications that are kept while a channel is followed
const DRAW_MS = 250; // a busy channel is drawn no more often
const SHOWN_CHARS = 4_096; // of a payload that comes live

export class ChannelsView {
  title = "Channels";
  #page;
  #busiest;
  #busiestNote = el("p", { class: "quiet note" });
  #input;
  #inspector = el("div", { class: "inspector" });
  #timer = 0;
  #active = false;
  #channel = "";
  #turn = 0; // an answer for another channel must not show
  #asHex = false;
  #following = "";
  // Whether the server has said so: what is published before is not heard.
  #isFollowed = false;
  #live = []; // the newest first
  #liveCount = 0;
  #drawTimer = 0;
  #parts = {};

  constructor(page) {
    this.#page = page;
    this.#busiest = new LiveTable("Busiest channels", [
      {
        title: "Channel", key: (row) => row.channel,
        cell: (row) => el("a", { href: `#channels/${encodeURIComponent(row.channel)}` }, name(row.channel)),
      },
      { title: "Publications a second", kind: "number", cell: (row) => figure(row.rate) },
      { title: "Subscribers", kind: "number", cell: (row) => count(row.clients) },
      { title: "Pushes a second", kind: "number", cell: (row) => figure(row.rate * row.clients) },
    ], (row) => row.channel, "Loading…");
    this.#input = el("input", {
      id: "channel-name", name: "channel", maxlength: 255, autocomplete: "off", autocapitalize: "none", spellcheck: "false",
    });
    const form = el("form", {
      class: "lookup",
      onsubmit: (event) => {
        event.preventDefault();
        const channel = this.#input.value.trim();
        if (!channel) {
          this.#input.focus();
          return;
        }
        const hash = `#channels/${encodeURIComponent(channel)}`;
        if (window.location.hash === hash) this.open(channel);
        else window.location.hash = hash;
      },
    }, el("label", { for: "channel-name" }, "Channel"), this.#input, el("button", { type: "submit", class: "primary" }, "Inspect"));
    this.element = el("div", {},
      form, this.#inspector,
      el("section", { "aria-labelledby": "busiest-title" },
        el("h2", { id: "busiest-title" }, "Busiest channels"), this.#busiest.element, this.#busiestNote));
    this.#busiest.update([]);
  }

  show(rest) {
    this.#active = true;
    void this.#lookAtBusiest();
    if (rest !== this.#channel) this.open(rest);
  }

  hide() {
    this.#active = false;
    clearTimeout(this.#timer);
  }

  // ---- the busiest

  async #lookAtBusiest() {
    clearTimeout(this.#timer);
    if (!this.#active) return;
    if (this.#page.isLive) {
      try {
        this.#showBusiest(await this.#page.ask("busiest"));
      } catch (error) {
        setText(this.#busiestNote, error.message);
      }
    }
    if (this.#active) this.#timer = setTimeout(() => void this.#lookAtBusiest(), BUSIEST_MS);
  }

  #showBusiest({ reports, silent }) {
    const channels = new Map();
    let all = 0;
    for (const report of reports) {
      all = Math.max(all, report.count ?? 0);
      for (const [channel, rate, clients] of report.channels ?? []) {
        const known = channels.get(channel) ?? { channel, rate: 0, clients: 0 };
        // Each node with subscribers gets each publication once.
        known.rate = Math.max(known.rate, rate);
        known.clients += clients;
        channels.set(channel, known);
      }
    }
    const rows = [...channels.values()].sort((a, b) =>
      b.rate * b.clients - a.rate * a.clients || b.clients - a.clients || (a.channel < b.channel ? -1 : 1)).slice(0, ROWS_MAX);
    this.#busiest.update(rows, "No channel has subscribers.");
    const windows = reports.map((report) => report.window_s ?? 0);
    setText(this.#busiestNote, [
      rows.length ? `Of up to ${many(all, "channel")} on one node, those with most traffic, in the last ${span(Math.max(...windows))}.` : "",
      silent.length ? `${many(silent.length, "node")} did not answer in time.` : "",
    ].join(" ").trim());
  }

  // ---- one channel

  open(channel) {
    this.#turn += 1;
    this.#channel = channel;
    this.#input.value = channel;
    if (this.#following && this.#following !== channel) this.#unfollow();
    if (!channel) {
      this.#inspector.replaceChildren();
      return;
    }
    const parts = this.#parts = {
      facts: el("div"),
      error: el("div"),
      follow: el("button", { type: "button", class: "plain", "aria-pressed": "false", onclick: () => void this.#toggleFollow() }, "Follow live"),
      presence: el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Members" }),
      history: el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Kept publications" }),
      live: el("ol", { class: "publications scroller", tabindex: "0", "aria-label": "Publications as they come" }),
      liveNote: el("p", { class: "quiet", role: "status" }),
      liveSection: el("section", { "aria-labelledby": "live-title", hidden: true }),
    };
    parts.liveSection.append(el("h3", { id: "live-title" }, "Live"), parts.liveNote, parts.live);
    const format = el("fieldset", { class: "choice" }, el("legend", { class: "sr" }, "Payloads as"),
      this.#choice("Text", false), this.#choice("Hex", true));
    const title = el("h2", { tabindex: "-1", id: "channel-title" }, name(channel));
    this.#inspector.replaceChildren(el("section", { class: "panel", "aria-labelledby": "channel-title" },
      el("div", { class: "head" }, title,
        el("div", { class: "actions" },
          el("button", { type: "button", class: "plain", onclick: () => void this.#look() }, "Reload"),
          parts.follow,
          this.#page.can("publish") ? el("button", { type: "button", class: "primary", onclick: () => void this.#publish() }, "Publish…") : null)),
      parts.error, parts.facts, format, parts.liveSection,
      el("div", { class: "columns" },
        el("section", { "aria-labelledby": "history-title" }, el("h3", { id: "history-title" }, "History"), parts.history),
        el("section", { "aria-labelledby": "presence-title" }, el("h3", { id: "presence-title" }, "Presence"), parts.presence))));
    title.focus();
    void this.#look();
  }

  #choice(text, isHex) {
    const input = el("input", {
      type: "radio", name: "format", checked: this.#asHex === isHex,
      onchange: () => {
        this.#asHex = isHex;
        for (const shown of this.#inspector.querySelectorAll("pre")) this.#fillPayload(shown);
      },
    });
    return el("label", {}, input, text);
  }

  async #look() {
    const turn = ++this.#turn;
    const { facts: about, error, presence, history } = this.#parts;
    const channel = this.#channel;
    error.replaceChildren();
    about.replaceChildren(notice("", "Loading…"));
    history.replaceChildren(notice("", "Loading…"));
    presence.replaceChildren(notice("", "Loading…"));
    let found;
    try {
      found = await this.#page.ask("channel", { channel });
    } catch (failure) {
      if (turn !== this.#turn) return;
      error.replaceChildren(notice("bad", failure.message));
      for (const part of [about, history, presence]) part.replaceChildren();
      return;
    }
    if (turn !== this.#turn) return;
    const all = found.subscribers.reduce((sum, each) => sum + each.subscribers, 0);
    const here = found.subscribers.filter((each) => each.subscribers);
    about.replaceChildren(facts(
      ["Subscribers", `${count(all)}${this.#following ? " (this page is one)" : ""}`],
      ["On", here.length ? el("span", {}, ...here.flatMap((each, index) => [index ? ", " : "", name(each.node), ` ${count(each.subscribers)}`])) : "no node"],
      found.silent.length ? ["Did not answer", found.silent.join(", ")] : null,
      ["History", found.history ? `${count(found.history_size)} publications, ${span(found.history_ttl_s)}` : "none"],
      ["Presence", found.presence ? "on" : "off"],
    ));
    await Promise.all([this.#lookAtHistory(turn, channel, found.history), this.#lookAtPresence(turn, channel, found.presence)]);
  }

  async #lookAtHistory(turn, channel, has) {
    const { history } = this.#parts;
    if (!has) {
      history.replaceChildren(notice("", "This channel keeps nothing."));
      return;
    }
    try {
      const { publications, epoch, offset } = await this.#page.ask("history", { channel });
      if (turn !== this.#turn) return;
      const note = el("p", { class: "quiet" }, `Newest first. Offset ${offset}, epoch `, name(epoch), ".");
      history.replaceChildren(note, publications.length
        ? el("ol", { class: "publications" }, ...publications.map((each) => this.#publication(each)))
        : notice("", "Nothing is kept at the moment."));
    } catch (failure) {
      if (turn === this.#turn) history.replaceChildren(notice("bad", failure.message));
    }
  }

  async #lookAtPresence(turn, channel, has) {
    const { presence } = this.#parts;
    if (!has) {
      presence.replaceChildren(notice("", "Presence is off in this channel."));
      return;
    }
    try {
      const { members, num_clients: clients } = await this.#page.ask("presence", { channel });
      if (turn !== this.#turn) return;
      const table = new LiveTable("Members", [
        { title: "User", key: (row) => row.user, cell: (row) => el("a", { href: `#clients/user/${encodeURIComponent(row.user)}` }, name(row.user, "anonymous")) },
        {
          title: "Connection and info", key: (row) => row.client + row.info,
          cell: (row) => [el("code", {}, row.client), ...(row.info ? [el("span", { class: "block quiet" }, name(row.info))] : [])],
        },
      ], (row) => row.client, "Nobody is here.");
      table.update(members);
      presence.replaceChildren(el("p", { class: "quiet" }, members.length < clients
        ? `${many(clients, "connection")}; the first ${count(members.length)}:` : many(clients, "connection")), table.element);
    } catch (failure) {
      if (turn === this.#turn) presence.replaceChildren(notice("bad", failure.message));
    }
  }

  // ---- publications

  #publication({ offset, time, user, client, tags, text, chars }) {
    const payload = el("pre", { tabindex: "0" });
    payload.source = text;
    this.#fillPayload(payload);
    payload.setAttribute("aria-label", offset ? `Payload of offset ${offset}` : "Payload");
    const about = [
      offset ? el("span", { class: "offset" }, `#${offset}`) : null,
      time ? el("time", { datetime: new Date(time).toISOString() }, when(time)) : null,
      client ? el("span", {}, "by ", name(user, "anonymous")) : null,
      tags ? el("span", { class: "quiet" }, name(JSON.stringify(tags))) : null,
      chars > text.length ? el("span", { class: "quiet" }, `first ${count(text.length)} of ${count(chars)} characters`) : null,
    ];
    return el("li", {}, el("p", { class: "about" }, ...about), payload);
  }

  #fillPayload(payload) {
    payload.textContent = this.#asHex ? hex(payload.source) : visible(payload.source);
    payload.classList.toggle("hex", this.#asHex);
  }

  // ---- live

  async #toggleFollow() {
    if (this.#following) {
      this.#unfollow();
      return;
    }
    const channel = this.#following = this.#channel;
    this.#isFollowed = false;
    this.#live = [];
    this.#liveCount = 0;
    this.#parts.follow.setAttribute("aria-pressed", "true");
    this.#parts.liveSection.hidden = false;
    this.#drawLive();
    try {
      await this.#page.follow(channel);
      if (channel !== this.#following) return;
      this.#isFollowed = true;
      this.#drawLive();
    } catch (failure) {
      this.#unfollow();
      this.#parts.error.replaceChildren(notice("bad", `This channel cannot be followed: ${failure.message}`));
    }
  }

  #unfollow() {
    this.#following = "";
    void this.#page.follow("");
    this.#parts.follow?.setAttribute("aria-pressed", "false");
    this.#drawLive();
  }

  published(channel, { data, offset = 0, info, tags, time }) {
    if (channel !== this.#following) return;
    const text = JSON.stringify(data) ?? "";
    this.#liveCount += 1;
    this.#live.unshift({
      offset, tags, time: time ?? Date.now(), user: info?.user ?? "", client: info?.client ?? "",
      text: text.slice(0, SHOWN_CHARS), chars: text.length, at: Date.now(),
    });
    this.#live.length = Math.min(this.#live.length, LIVE_MAX);
    if (!this.#drawTimer) this.#drawTimer = setTimeout(() => this.#drawLive(), DRAW_MS);
  }

  #drawLive() {
    clearTimeout(this.#drawTimer);
    this.#drawTimer = 0;
    const { live, liveNote } = this.#parts;
    if (!live) return;
    if (!this.#following) {
      setText(liveNote, this.#liveCount ? "Not followed any more." : "");
      return;
    }
    // What is focused, or marked, stays: rows that were made are kept.
    const made = new Map([...live.children].map((row) => [row.source, row]));
    live.replaceChildren(...this.#live.map((each) => {
      const row = made.get(each) ?? this.#publication(each);
      row.source = each;
      return row;
    }));
    setText(liveNote, this.#liveCount
      ? `${many(this.#liveCount, "publication")} since this page began to follow${this.#liveCount > LIVE_MAX ? `; the newest ${LIVE_MAX}` : ""}. Last at ${clock(this.#live[0].at)}.`
      : this.#isFollowed ? "Following. What is published from now on appears here." : "Beginning to follow…");
  }

  async #publish() {
    const channel = this.#channel;
    const data = el("textarea", { id: "publish-data", rows: "6", spellcheck: "false", autocomplete: "off" });
    const done = await ask({
      title: "Publish",
      text: `To all subscribers of ${channel}, and into its history if it has one. This cannot be taken back.`,
      fields: [el("label", { for: "publish-data" }, "Payload, as JSON"), data],
      confirm: "Publish",
      run: async () => {
        let value;
        try {
          value = JSON.parse(data.value);
        } catch {
          data.focus();
          throw new Error('That is not JSON. A text needs quotes: "hello".');
        }
        await this.#page.ask("publish", { channel, data: value });
      },
    });
    if (done) {
      this.#page.announce("Published");
      void this.#look();
    }
  }
}
