/**
 * What two looks at the fleet say of the time between them. Nodes tell totals, which grow from their start on; a node
 * that was started again, or did not answer, is left out of that time.
 */

import { many, span } from "./format.js";

const SLOW_S = 10; // who has not answered for longer is not slow: it may be gone
const SILENT_S = 40; // who has not renewed its lease for longer missed two heartbeats of 15 s, the default
const CLOCKS_S = 3; // ages by clocks of two machines, and what an answer may take

/** The nodes of `after` with what they said before: [{before, after, seconds}]. */
function pairs(before, after) {
  const earlier = new Map(before.nodes.map((node) => [node.node, node.figures]));
  const found = [];
  for (const { node, figures } of after.nodes) {
    const then = earlier.get(node);
    if (!then || !figures || figures.at_ms <= then.at_ms) continue;
    if (figures.totals.pushes < then.totals.pushes || figures.totals.opened < then.totals.opened) continue;
    found.push({ before: then, after: figures, seconds: (figures.at_ms - then.at_ms) / 1_000 });
  }
  return found;
}

/** A total's growth a second, of all nodes together; null: not known. */
export function rate(before, after, total) {
  const found = pairs(before, after);
  if (!found.length) return null;
  return found.reduce((sum, pair) => sum + (pair.after.totals[total] - pair.before.totals[total]) / pair.seconds, 0);
}

/** The values that a histogram got meanwhile, of all nodes together: {bounds, counts, sum}; null: none. */
export function between(before, after, histogram) {
  let all = null;
  for (const pair of pairs(before, after)) {
    const now = pair.after.histograms?.[histogram];
    const then = pair.before.histograms?.[histogram];
    if (!now || !then || now.counts.length !== then.counts.length) continue;
    all ??= { bounds: now.bounds, counts: now.counts.map(() => 0), sum: 0 };
    if (all.counts.length !== now.counts.length) continue;
    now.counts.forEach((count, index) => { all.counts[index] += Math.max(0, count - then.counts[index]); });
    all.sum += Math.max(0, now.sum - then.sum);
  }
  return all && all.counts.some(Boolean) ? all : null;
}

/** The value with `part` of all values below it, as far as the histogram's bounds tell. */
export function quantile(histogram, part) {
  if (!histogram) return null;
  const total = histogram.counts.reduce((sum, each) => sum + each, 0);
  const wanted = part * total;
  let below = 0;
  for (let index = 0; index < histogram.counts.length; index += 1) {
    const here = histogram.counts[index];
    if (here && below + here >= wanted) {
      const low = index ? histogram.bounds[index - 1] : 0;
      const high = histogram.bounds[index] ?? histogram.bounds.at(-1);
      return low + ((high - low) * Math.max(0, wanted - below)) / here;
    }
    below += here;
  }
  return null;
}

export function mean(histogram) {
  if (!histogram) return null;
  return histogram.sum / histogram.counts.reduce((sum, each) => sum + each, 0);
}

/** The greatest of what the nodes tell; null: none tells. */
export function worst(fleet, read) {
  const values = fleet.nodes.map(({ figures }) => (figures ? read(figures) : null)).filter((each) => typeof each === "number");
  return values.length ? Math.max(...values) : null;
}

/** How a node does: {word, tone, why}. Tones: "good", "warn", "bad", "quiet". */
export function condition({ state, figures, late_s: lateS, heartbeat_age_s: beatS }) {
  if (!figures) {
    return state === "starting"
      ? { word: "starting", tone: "quiet", why: [] }
      : { word: "no answer", tone: "bad", why: ["did not answer in time; what is shown is from its lease", ...life(beatS)] };
  }
  if (lateS > SLOW_S) {
    return { word: "no answer", tone: "bad", why: [`last answered ${span(lateS)} ago; what is shown is of then`, ...life(beatS, lateS)] };
  }
  if (lateS && figures.ready && !figures.draining) {
    return { word: "slow", tone: "warn", why: ["answers late; what is shown is a few seconds old", ...figures.doubts] };
  }
  if (figures.draining || state === "draining") return { word: "draining", tone: "warn", why: [] };
  if (!figures.ready) return { word: "not ready", tone: "bad", why: figures.reasons };
  if (figures.doubts.length) return { word: "degraded", tone: "warn", why: figures.doubts };
  return { word: "ready", tone: "good", why: [] };
}

/** What the lease of a node that does not answer tells of it. Heartbeats need neither the topic nor a queue. */
function life(beatS, lateS = SILENT_S) {
  if (beatS + CLOCKS_S < lateS) {
    return [`its last heartbeat came ${span(beatS)} ago: it runs, but the topic or its queue brings it nothing`];
  }
  return beatS > SILENT_S ? [`no heartbeat for ${span(beatS)}: it has ended, is suspended or is cut off`] : [];
}

/**
 * What most nodes have in common, which no row of them can tell; "" if it is nothing. Not all: who has just started, or
 * writes nothing, notices later.
 */
export function common(fleet) {
  const answered = fleet.nodes.map(({ figures }) => figures).filter(Boolean);
  const silent = answered.filter(({ hearing }) => hearing === "silent").length;
  if (2 * silent <= answered.length) return "";
  return `${silent} of ${many(answered.length, "node")} do not hear what is written: look at the channels table and its stream, the stream Lambda and the topic. roomcast doctor tells which it is.`;
}
