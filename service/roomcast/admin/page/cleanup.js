/** What dead nodes left behind, as `roomcast reap --dry-run` finds it. Nothing is removed. */

import { el, LiveTable, name, notice } from "./dom.js";
import { count, many } from "./format.js";

const LOOK_MS = 1_000;

export class CleanupView {
  title = "Clean-up";
  #page;
  #button;
  #found = el("div");
  #timer = 0;

  constructor(page) {
    this.#page = page;
    this.#button = el("button", { type: "button", class: "primary", onclick: () => void this.#look("reap") }, "Look for what dead nodes left");
    this.element = el("div", {},
      el("p", { class: "quiet" }, "A dry run of the reaper on the node that serves this page: it reads leases, queues and subscriptions, and removes nothing. If leases look expired it looks a second time, after 45 s."),
      page.can("reap")
        ? el("div", { class: "actions" }, this.#button)
        : notice("", "The node that serves this page cannot run the reaper."),
      this.#found);
  }

  show() {
    if (this.#page.can("reap") && this.#page.isLive) void this.#look("reap_state");
  }

  hide() {
    clearTimeout(this.#timer);
  }

  async #look(method) {
    clearTimeout(this.#timer);
    try {
      const state = await this.#page.ask(method);
      this.#show(state);
      if (state.running) this.#timer = setTimeout(() => void this.#look("reap_state"), LOOK_MS);
    } catch (failure) {
      this.#button.disabled = false;
      this.#found.replaceChildren(notice("bad", failure.message));
    }
  }

  #show({ running, said, report, failed }) {
    const wasRunning = this.#button.disabled;
    this.#button.disabled = running;
    if (running) {
      this.#found.replaceChildren(el("div", { class: "panel", role: "status" },
        el("h2", {}, "Looking…"), el("ol", { class: "said" }, ...said.map((line) => el("li", {}, line)))));
      return;
    }
    const parts = [];
    if (failed) parts.push(notice("bad", `The dry run failed: ${failed}`));
    if (report?.missing?.length) parts.push(this.#missing(report.missing));
    if (report && !failed) parts.push(...this.#report(report));
    this.#found.replaceChildren(...parts);
    if (wasRunning) this.#page.announce(failed ? "The dry run failed" : "The dry run is done");
  }

  #missing(missing) {
    return el("div", { class: "notice warn", role: "alert" },
      el("p", {}, "The role of this node may not look everywhere, so this is not all. It lacks:"),
      el("ul", {}, ...missing.map((each) => el("li", {}, el("code", {}, each)))),
      el("p", {}, "The reaper's own role has them: ", el("code", {}, "roomcast reap --dry-run"), " with that role finds everything."));
  }

  #report(report) {
    const rows = [
      ...report.nodes.map((each) => ({ what: "node", id: each.node, why: each.why, with: resources(each) })),
      ...report.queues.map((each) => ({ what: "queue", id: each.queue, why: each.why, with: "" })),
      ...report.subscriptions.map((each) => ({ what: "subscription", id: each.queue, why: each.why, with: "" })),
    ];
    const table = new LiveTable("What would be removed", [
      { title: "Name", key: (row) => row.id, cell: (row) => name(row.id) },
      { title: "What", cell: (row) => row.what },
      { title: "Why", cell: (row) => row.why },
      { title: "With it", cell: (row) => row.with || "–" },
    ], (row) => `${row.what} ${row.id}`, "Nothing to clean up.");
    table.update(rows);
    const { counts } = report;
    const hidden = counts.nodes + counts.queues + counts.subscriptions - rows.length;
    return [
      el("h2", {}, rows.length ? "Would be removed" : "All is clean"),
      el("p", { class: "quiet" }, `${many(report.live, "node")} ${report.live === 1 ? "lives" : "live"}.${hidden ? ` ${count(hidden)} more are not shown.` : ""}`),
      table.element,
      ...(report.failures.length ? [el("h3", {}, many(report.failed, "step", "steps"), " failed"),
        el("ul", { class: "why" }, ...report.failures.map((each) => el("li", {}, `${each.step}: ${each.reason}`)))] : []),
    ];
  }
}

function resources(node) {
  return [
    node.queue ? `queue ${node.queue}` : "",
    node.subscriptions.length ? many(node.subscriptions.length, "subscription") : "",
    node.channels ? many(node.channels, "channel") : "",
    node.members ? many(node.members, "member") : "",
  ].filter(Boolean).join(", ");
}
