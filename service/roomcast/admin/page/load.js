/** Rates and latency by stage, attempts of appends and waits for turns, of all nodes together. */

import { Chart } from "./charts.js";
import { el, setText } from "./dom.js";
import { between, mean, quantile, rate, worst } from "./figures.js";
import { bytes, count, figure, ms } from "./format.js";

const inMs = (value) => (value === null ? null : value * 1_000);

/** Reads a figure of the newest canary, unless no canary comes: an old one must not look like a fast way. */
const ofCanary = (name) => (figures) => (figures.hearing === "well" ? figures[name] : null);

export class LoadView {
  title = "Load";
  #charts;
  #waiting = el("p", { class: "quiet note" });

  constructor() {
    const a = (format) => (value) => format(value);
    this.#charts = [
      [new Chart("Publications a second", "Accepted by all nodes, with history and without.",
        [{ title: "Accepted" }, { title: "Rejected or unknown" }], a(figure)),
      (before, after) => [rate(before, after, "publications"), sum(rate(before, after, "rejected"), rate(before, after, "unknown"))]],
      [new Chart("Pushes a second", "What went to subscribers, each once a subscriber.",
        [{ title: "Pushes" }], a(figure)),
      (before, after) => [rate(before, after, "pushes")]],
      [new Chart("Stage 1: into the log", "From a publication to its acknowledgement.",
        [{ title: "Median" }, { title: "99 of 100" }], a(ms)),
      (before, after) => {
        const took = between(before, after, "publish_s");
        return [inMs(quantile(took, 0.5)), inMs(quantile(took, 0.99))];
      }],
      [new Chart("Stages 2 and 3: to the nodes", "99 of 100, canaries included: from the table to the Lambda, and from there to the nodes; in between, by the newest canary. And how late queues are.",
        [{ title: "To the Lambda" }, { title: "To the node" }, { title: "Queue lag" }], a(ms)),
      (before, after) => [
        inMs(quantile(between(before, after, "stream_s"), 0.99)) ?? worst(after, ofCanary("to_lambda_ms")),
        inMs(quantile(between(before, after, "topic_s"), 0.99)) ?? worst(after, ofCanary("to_node_ms")),
        worst(after, (each) => each.lag_ms),
      ]],
      [new Chart("The whole way to other nodes", "From an append until it went to the subscribers of another node, with what had to be read from the log.",
        [{ title: "Median" }, { title: "99 of 100" }], a(ms)),
      (before, after) => {
        const took = between(before, after, "delivery_s");
        return [inMs(quantile(took, 0.5)), inMs(quantile(took, 0.99))];
      }],
      [new Chart("Attempts an append", "Writes sent for one append: above 1, nodes race for a channel or the table throttles.",
        [{ title: "Mean" }, { title: "99 of 100" }], a(figure)),
      (before, after) => {
        const attempts = between(before, after, "attempts");
        return [mean(attempts), quantile(attempts, 0.99)];
      }],
      [new Chart("Waits for turns", "How long appends waited for their turn where several nodes write in one channel.",
        [{ title: "Median" }, { title: "99 of 100" }], a(ms)),
      (before, after) => {
        const turns = between(before, after, "turn_s");
        return [inMs(quantile(turns, 0.5)), inMs(quantile(turns, 0.99))];
      }],
      [new Chart("Between nodes", "From a signal for one other node until its message was sent.",
        [{ title: "Median" }, { title: "99 of 100" }], a(ms)),
      (before, after) => {
        const took = between(before, after, "mailbox_s");
        return [inMs(quantile(took, 0.5)), inMs(quantile(took, 0.99))];
      }],
      [new Chart("Connections opened a second", "New connections, and commands of all clients.",
        [{ title: "Opened" }, { title: "Commands" }], a(figure)),
      (before, after) => [rate(before, after, "opened"), rate(before, after, "commands")]],
    ];
    this.element = el("div", {}, el("div", { class: "charts" }, ...this.#charts.map(([chart]) => chart.element)), this.#waiting);
  }

  /** Takes another look at the fleet. Charts are drawn only while they are seen. */
  take(fleet, before) {
    for (const [chart, read] of this.#charts) chart.push(fleet.now_ms, read(before, fleet));
  }

  update(fleet) {
    if (!fleet) return;
    for (const [chart] of this.#charts) chart.draw(fleet.now_ms);
    const appends = fleet.nodes.reduce((all, { figures }) => all + (figures?.waiting.appends ?? 0), 0);
    const clients = fleet.nodes.reduce((all, { figures }) => all + (figures?.waiting.clients ?? 0), 0);
    const signals = fleet.nodes.reduce((all, { figures }) => all + (figures?.waiting.signals ?? 0), 0);
    const lost = fleet.nodes.reduce((all, { figures }) => all + (figures?.totals.races ?? 0), 0);
    const throttled = fleet.nodes.reduce((all, { figures }) => all + (figures?.totals.throttled ?? 0), 0);
    setText(this.#waiting, `Waiting now: ${bytes(appends)} of publications, ${bytes(signals)} of signals, ${bytes(clients)} for clients that read slowly. Since the nodes started: ${count(lost)} races lost to other nodes, ${count(throttled)} writes that the table had no room for.`);
  }
}

function sum(one, other) {
  return one === null || other === null ? null : one + other;
}
