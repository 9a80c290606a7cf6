/** The page: its views, its connection, and what all views share. */

import { ChannelsView } from "./channels.js";
import { CleanupView } from "./cleanup.js";
import { Client } from "./client.js";
import { ClientsView } from "./clients.js";
import { el, notice, setText } from "./dom.js";
import { common } from "./figures.js";
import { FleetView } from "./fleet.js";
import { clock } from "./format.js";
import { LoadView } from "./load.js";
import { TokensView } from "./tokens.js";

const LOOK_MS = 3_000; // between two looks at the fleet
const ENDED = "roomcast-admin-ended";
const VIEWS = { fleet: FleetView, load: LoadView, channels: ChannelsView, clients: ClientsView, tokens: TokensView, cleanup: CleanupView };
const TITLES = { fleet: "Fleet", load: "Load", channels: "Channels", clients: "Clients", tokens: "Tokens", cleanup: "Clean-up" };

const byId = (id) => document.getElementById(id);

class Page {
  #client = new Client((state, detail) => this.#onState(state, detail), (channel, pub) => this.#views.channels?.published(channel, pub));
  #views = {};
  #methods = new Set();
  #shown = "";
  #fleet = null;
  #before = null;
  #looking = 0;
  #isPaused = false;
  #seenMs = 0;
  #retryTimer = 0;
  #endTimer = 0;

  start() {
    byId("nav").append(...Object.entries(TITLES).map(([key, title]) => el("li", {}, el("a", { href: `#${key}` }, title))));
    window.addEventListener("hashchange", () => this.#route(true));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void this.#look();
    });
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      byId("main").focus();
    });
    byId("pause").addEventListener("click", () => this.#togglePause());
    byId("retry").addEventListener("click", () => this.#client.retry());
    byId("logout").addEventListener("click", () => void this.#logout());
    void this.#client.connect();
  }

  // ---- what views use

  get isLive() {
    return this.#client.isOpen && !this.#isPaused && !document.hidden;
  }

  can(method) {
    return this.#methods.has(method);
  }

  ask(method, data) {
    return this.#client.ask(method, data);
  }

  follow(channel) {
    return this.#client.follow(channel);
  }

  announce(text) {
    byId("announce").textContent = text;
  }

  // ---- views

  #route(byUser) {
    const [key, ...rest] = decoded(window.location.hash.slice(1));
    const next = key in VIEWS ? key : "fleet";
    const view = this.#views[next];
    if (!view) return;
    const title = TITLES[next];
    if (next !== this.#shown) {
      this.#views[this.#shown]?.hide?.();
      this.#shown = next;
      byId("view").replaceChildren(view.element);
      setText(byId("title"), title);
      document.title = `${title} · roomcast operations`;
      for (const link of byId("nav").querySelectorAll("a")) {
        if (link.hash === `#${next}`) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      }
      if (byUser) window.scrollTo(0, 0);
    }
    view.show?.(rest.join("/"));
    view.update?.(this.#fleet, this.#before);
  }

  async #look() {
    clearTimeout(this.#looking);
    if (!this.#client.isOpen) return;
    if (this.isLive) {
      try {
        this.#take(await this.ask("fleet"));
        setText(byId("trouble"), common(this.#fleet));
        byId("trouble").hidden = !byId("trouble").textContent;
      } catch (error) {
        const seen = this.#seenMs ? ` What is shown is of ${clock(this.#seenMs)}.` : "";
        setText(byId("trouble"), `The fleet could not be asked: ${error.message}.${seen}`);
        byId("trouble").hidden = false;
      }
    }
    clearTimeout(this.#looking);
    this.#looking = setTimeout(() => void this.#look(), LOOK_MS);
  }

  #take(fleet) {
    if (this.#fleet && fleet.now_ms <= this.#fleet.now_ms) return;
    // A large fleet is looked at less often, and the same look may come twice.
    const isNew = !this.#fleet || fleet.nodes.some(({ node, figures }) =>
      figures && figures.at_ms !== this.#fleet.nodes.find((each) => each.node === node)?.figures?.at_ms);
    if (isNew) {
      this.#before = this.#fleet;
      this.#fleet = fleet;
      if (this.#before) this.#views.load.take(fleet, this.#before);
    }
    this.#seenMs = Date.now();
    setText(byId("about"), `As of ${clock(this.#seenMs)}, by node ${fleet.own}.`);
    this.#views[this.#shown]?.update?.(this.#fleet, this.#before);
  }

  // ---- the connection

  async #onState(state, detail = {}) {
    const words = { connecting: "Connecting…", open: "Live", lost: "Connection lost", ended: "Logged out", closed: "Closed" };
    clearTimeout(this.#retryTimer);
    byId("state").dataset.state = this.#isPaused && state === "open" ? "paused" : state;
    setText(byId("state-text"), this.#isPaused && state === "open" ? "Paused" : words[state]);
    document.body.classList.toggle("stale", state !== "open" && Boolean(this.#fleet));
    if (state !== "open") byId("trouble").hidden = true;
    if (state === "ended") {
      sessionStorage.setItem(ENDED, "1");
      window.location.reload();
    } else if (state === "lost") {
      this.#tellLost(detail.retryAtMs);
    } else if (state === "open") {
      byId("banner").hidden = true;
      this.#endAt(detail.endsAtMs);
      await this.#begin();
    }
  }

  async #begin() {
    try {
      const hello = await this.ask("hello");
      byId("mode").hidden = hello.write;
      const methods = hello.methods.join();
      if (methods !== [...this.#methods].join()) {
        this.#methods = new Set(hello.methods);
        this.#shown = "";
        this.#views = Object.fromEntries(Object.entries(VIEWS).map(([key, View]) => [key, new View(this)]));
      }
      this.#route(false);
      await this.#look();
    } catch (error) {
      if (this.#client.isOpen) byId("view").replaceChildren(notice("bad", `The node does not answer: ${error.message}`));
    }
  }

  #tellLost(retryAtMs) {
    const leftS = Math.max(0, Math.ceil((retryAtMs - Date.now()) / 1_000));
    const seen = this.#seenMs ? ` What is shown is of ${clock(this.#seenMs)}.` : "";
    if (byId("banner").hidden) setText(byId("banner-text"), `The connection to the server is lost.${seen}`);
    setText(byId("state-text"), leftS ? `Lost; trying again in ${leftS} s` : "Trying again…");
    byId("banner").hidden = false;
    if (leftS) this.#retryTimer = setTimeout(() => this.#tellLost(retryAtMs), 1_000);
  }

  /** The server ends the connection with the session; the page says so by itself. */
  #endAt(endsAtMs) {
    clearTimeout(this.#endTimer);
    const leftMs = endsAtMs - Date.now();
    if (leftMs < 2 ** 31) this.#endTimer = setTimeout(() => void this.#client.connect(), leftMs + 1_000);
  }

  #togglePause() {
    this.#isPaused = !this.#isPaused;
    byId("pause").setAttribute("aria-pressed", String(this.#isPaused));
    setText(byId("pause"), this.#isPaused ? "Resume" : "Pause");
    if (this.#client.isOpen) {
      byId("state").dataset.state = this.#isPaused ? "paused" : "open";
      setText(byId("state-text"), this.#isPaused ? "Paused" : "Live");
    }
    if (!this.#isPaused) void this.#look();
  }

  async #logout() {
    this.#client.close();
    try {
      await fetch("/admin/logout", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
    } finally {
      window.location.reload();
    }
  }
}

function decoded(hash) {
  return hash.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
}

new Page().start();
