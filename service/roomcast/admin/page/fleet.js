/** All nodes, and how they are doing. */

import { ask } from "./dialog.js";
import { el, LiveTable, name, setText, visible } from "./dom.js";
import { condition, rate, worst } from "./figures.js";
import { count, figure, many, ms, NONE, span } from "./format.js";

export class FleetView {
  title = "Fleet";
  #page;
  #table;
  #cards;
  #dead = el("p", { class: "notice warn dead", hidden: true });
  #note = el("p", { class: "quiet note" });
  #known = null; // node -> word, for what is announced

  constructor(page) {
    this.#page = page;
    const columns = [
      { title: "Node", cell: (row) => this.#node(row), key: (row) => `${row.node} ${row.instance} ${row.own}` },
      { title: "State", cell: state, key: (row) => JSON.stringify(condition(row)) },
      { title: "Version", cell: (row) => row.version || NONE },
      { title: "Up", kind: "number", cell: (row) => span(row.uptime_s) },
      { title: "Connections", kind: "number", cell: (row) => count(row.figures?.connections ?? row.connections) },
      { title: "Queue lag", kind: "number", cell: (row) => ms(row.figures?.lag_ms ?? row.lag_ms) },
      { title: "Canary", kind: "number", cell: (row) => (row.figures ? span(row.figures.canary_age_s) : NONE) },
      { title: "Mailbox", kind: "number", cell: mailbox },
    ];
    if (page.can("drain")) {
      columns.push({ title: "Action", kind: "action", cell: (row) => this.#drain(row), key: (row) => `${row.node} ${condition(row).word}` });
    }
    this.#table = new LiveTable("Nodes of the fleet", columns, (row) => row.node, "No node answers.");
    this.#cards = new Cards(["Nodes ready", "Connections", "Publications a second", "Pushes a second", "Worst queue lag", "Oldest canary"]);
    this.element = el("div", {}, this.#cards.element, this.#dead, this.#table.element, this.#note);
  }

  update(fleet, before) {
    if (!fleet) return;
    const rows = fleet.nodes.map((node) => ({ ...node, own: node.node === fleet.own }));
    this.#table.update(rows);
    const ready = rows.filter((row) => condition(row).tone === "good").length;
    const connections = rows.reduce((sum, row) => sum + (row.figures?.connections ?? row.connections), 0);
    this.#cards.update([
      `${count(ready)} of ${count(rows.length)}`,
      count(connections),
      figure(before ? rate(before, fleet, "publications") : null),
      figure(before ? rate(before, fleet, "pushes") : null),
      ms(worst(fleet, (figures) => figures.lag_ms)),
      span(worst(fleet, (figures) => figures.canary_age_s)),
    ], [rows.some((row) => ["warn", "bad"].includes(condition(row).tone))]);
    const dead = fleet.dead ?? [];
    setText(this.#dead, dead.map((each) =>
      `${visible(each.node)} is dead: its last heartbeat was ${span(each.heartbeat_age_s)} ago. Clean-up finds what it left.`).join(" "));
    this.#dead.hidden = !dead.length;
    const silent = rows.filter((row) => !row.figures && row.state !== "starting").length;
    const late = rows.filter((row) => row.late_s);
    setText(this.#note, [
      fleet.leases_age_s > 5 ? `The table of nodes could not be read for ${span(fleet.leases_age_s)}: newer nodes are missing.` : "",
      late.length ? `${many(late.length, "node")} answered late: the oldest answer is of ${span(Math.max(...late.map((row) => row.late_s)))} ago.` : "",
      silent ? `${many(silent, "node")} did not answer in time: what is shown of them is as old as their last heartbeat.` : "",
      fleet.more ? `${many(fleet.more, "more node")} not shown.` : "",
    ].join(" ").trim());
    this.#announce(rows);
  }

  /** Says what has changed, and never the figures themselves. */
  #announce(rows) {
    const now = new Map(rows.map((row) => [row.node, condition(row).word]));
    if (this.#known) {
      const said = [];
      for (const [node, word] of now) if (this.#known.get(node) !== word) said.push(`${node} is ${word}`);
      for (const node of this.#known.keys()) if (!now.has(node)) said.push(`${node} is gone`);
      if (said.length) this.#page.announce(said.slice(0, 4).join(". "));
    }
    this.#known = now;
  }

  #node(row) {
    return [name(row.node), ...(row.own ? [el("span", { class: "tag" }, "serves this page")] : []),
      ...(row.instance ? [el("span", { class: "quiet block" }, row.instance)] : [])];
  }

  #drain(row) {
    if (["draining", "starting"].includes(condition(row).word)) return "";
    return el("button", { type: "button", class: "plain", onclick: () => this.#askDrain(row) },
      "Drain", el("span", { class: "sr" }, ` ${row.node}`));
  }

  async #askDrain(row) {
    const done = await ask({
      title: "Drain this node?",
      text: `${row.node} stops taking clients, sends its ${many(row.connections, "connection")} elsewhere, and ends. What watches its process may start it again.`,
      confirm: "Drain",
      danger: true,
      run: () => this.#page.ask("drain", { node: row.node }),
    });
    if (done) this.#page.announce(`${row.node} was told to drain`);
  }
}

/** Figures side by side. */
class Cards {
  #values;
  #cards;

  constructor(titles) {
    this.#values = titles.map(() => el("dd", {}, NONE));
    this.#cards = titles.map((title, index) => el("div", { class: "card" }, el("dt", {}, title), this.#values[index]));
    this.element = el("dl", { class: "cards" }, ...this.#cards);
  }

  update(texts, alarms) {
    texts.forEach((text, index) => {
      setText(this.#values[index], text);
      this.#cards[index].classList.toggle("alarm", Boolean(alarms[index]));
    });
  }
}

function state(row) {
  const { word, tone, why } = condition(row);
  return [el("span", { class: `state ${tone}` }, word),
    ...(why.length ? [el("ul", { class: "why" }, ...why.map((each) => el("li", {}, each)))] : [])];
}

function mailbox(row) {
  if (!row.figures) return NONE;
  const { sent = 0, not_sent: notSent = 0, no_node: noNode = 0 } = row.figures.mailbox;
  const failed = notSent + noNode;
  return failed ? `${count(sent)}, ${count(failed)} failed` : count(sent);
}
