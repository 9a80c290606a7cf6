/** The connections of a user, or one by its id, on all nodes. */

import { ask } from "./dialog.js";
import { el, facts, name, notice } from "./dom.js";
import { bytes, count, many, NONE } from "./format.js";

export class ClientsView {
  title = "Clients";
  #page;
  #kind;
  #input;
  #found = el("div");
  #turn = 0;
  #asked = null; // {user} or {client}

  constructor(page) {
    this.#page = page;
    this.#kind = el("select", { id: "client-kind" },
      el("option", { value: "user" }, "User"), el("option", { value: "client" }, "Client id"));
    this.#input = el("input", { id: "client-name", autocomplete: "off", autocapitalize: "none", spellcheck: "false", maxlength: 1024, "aria-describedby": "client-hint" });
    const form = el("form", {
      class: "lookup",
      onsubmit: (event) => {
        event.preventDefault();
        const value = this.#input.value;
        if (this.#kind.value === "client" && !value) {
          this.#input.focus();
          return;
        }
        const hash = `#clients/${this.#kind.value}/${encodeURIComponent(value)}`;
        if (window.location.hash === hash) void this.#look();
        else window.location.hash = hash;
      },
    }, el("label", { for: "client-kind" }, "Look up by"), this.#kind, el("label", { class: "sr", for: "client-name" }, "Name"), this.#input,
    el("button", { type: "submit", class: "primary" }, "Find"));
    this.element = el("div", {}, form,
      el("p", { class: "quiet", id: "client-hint" }, "An empty user finds anonymous clients."), this.#found);
  }

  show(rest) {
    const [kind, value = ""] = rest ? split(rest) : [];
    if (kind !== "user" && kind !== "client") return;
    this.#kind.value = kind;
    this.#input.value = value;
    this.#asked = { [kind]: value };
    void this.#look();
  }

  hide() {}

  async #look() {
    const turn = ++this.#turn;
    this.#found.replaceChildren(notice("", "Asking all nodes…"));
    try {
      const { nodes, silent } = await this.#page.ask("clients", this.#asked);
      if (turn === this.#turn) this.#show(nodes, silent);
    } catch (failure) {
      if (turn === this.#turn) this.#found.replaceChildren(notice("bad", failure.message));
    }
  }

  #show(nodes, silent) {
    const all = nodes.reduce((sum, each) => sum + each.count, 0);
    const rows = nodes.flatMap(({ node, clients }) => clients.map((client) => ({ node, ...client })));
    const parts = [];
    if (silent.length) parts.push(notice("warn", `${many(silent.length, "node")} did not answer in time; their connections are not here: ${silent.join(", ")}`));
    if (!all) {
      parts.push(notice("", "Nobody is connected by that name."));
    } else {
      const byUser = "user" in this.#asked;
      const text = `${many(all, "connection")} on ${many(nodes.length, "node")}${rows.length < all ? `; ${count(rows.length)} are shown` : ""}`;
      parts.push(el("div", { class: "head" }, el("h2", { tabindex: "-1", id: "clients-title" }, text),
        byUser && this.#page.can("disconnect")
          ? el("button", { type: "button", class: "danger", onclick: () => void this.#disconnect({ user: this.#asked.user }, text) }, "Disconnect all…") : null));
      parts.push(el("ul", { class: "connections" }, ...rows.map((row) => this.#connection(row))));
    }
    this.#found.replaceChildren(...parts);
    this.#page.announce(all ? many(all, "connection") : "Nobody found");
  }

  #connection(row) {
    const kinds = [row.protobuf ? "Protobuf" : "JSON", row.unidirectional ? "unidirectional" : ""].filter(Boolean).join(", ");
    const more = row.channel_count - row.channels.length;
    const channels = row.channels.map((channel) => el("li", {},
      el("a", { href: `#channels/${encodeURIComponent(channel)}` }, name(channel)),
      this.#page.can("unsubscribe")
        ? el("button", { type: "button", class: "link", onclick: () => void this.#unsubscribe(row, channel) }, "Unsubscribe", el("span", { class: "sr" }, ` from ${channel}`)) : null));
    return el("li", { class: "panel" },
      el("div", { class: "head" }, el("h3", {}, el("code", {}, row.client)),
        this.#page.can("disconnect")
          ? el("button", { type: "button", class: "plain", onclick: () => void this.#disconnect({ client: row.client, user: row.user }, "this connection") }, "Disconnect…", el("span", { class: "sr" }, ` ${row.client}`)) : null),
      facts(
        ["User", name(row.user, "anonymous")],
        ["Node", name(row.node)],
        ["Speaks", kinds],
        ["Waits to be sent", bytes(row.unsent_bytes)],
        ["Info", name(row.info, NONE)],
      ),
      el("h4", {}, many(row.channel_count, "subscription")),
      el("ul", { class: "chips" }, ...channels, more > 0 ? el("li", { class: "quiet" }, `and ${count(more)} more`) : null));
  }

  async #disconnect(target, text) {
    const done = await ask({
      title: "Disconnect?",
      text: `Ends ${text} for good: SDKs do not come back by themselves (3503).`,
      confirm: "Disconnect",
      danger: true,
      run: () => this.#page.ask("disconnect", target),
    });
    if (done) this.#later("Told to disconnect");
  }

  async #unsubscribe(row, channel) {
    const done = await ask({
      title: "Unsubscribe?",
      text: `Ends the subscription of ${row.client} to ${channel}. Its SDK does not subscribe again by itself.`,
      confirm: "Unsubscribe",
      danger: true,
      run: () => this.#page.ask("unsubscribe", { client: row.client, user: row.user, channel }),
    });
    if (done) this.#later("Told to unsubscribe");
  }

  /** Orders reach other nodes within a second; answers about them are two seconds old at most. */
  #later(text) {
    this.#page.announce(text);
    this.#found.prepend(notice("good", `${text}. Nodes carry it out within moments.`));
    const turn = this.#turn;
    setTimeout(() => turn === this.#turn && void this.#look(), 2_500);
  }
}

function split(rest) {
  const at = rest.indexOf("/");
  return at < 0 ? [rest] : [rest.slice(0, at), rest.slice(at + 1)];
}
