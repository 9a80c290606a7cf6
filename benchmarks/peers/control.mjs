// How benchmarks/contest.py talks to a peer: as benchmarks/peers/control.py.

import { createInterface } from "node:readline";

const POLL_MS = 10;

const turn = () => new Promise((resolve) => setImmediate(resolve));
const pause = () => new Promise((resolve) => setTimeout(resolve, POLL_MS));

/** `clients` counts those that are in. `broadcast` sends one publication to all of them. */
export async function obey(server, clients, broadcast) {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", 1024, resolve));
  const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
  answer({ port: server.address().port });
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    if (asked.do === "subscribed") {
      while (clients() < asked.count) await pause();
    } else {
      for (let each = 0; each < asked.count; each++) {
        broadcast(asked.text);
        // Publications come one by one, as from a publisher who waits.
        await turn();
      }
    }
    answer({});
  }
  process.exit(0);
}
