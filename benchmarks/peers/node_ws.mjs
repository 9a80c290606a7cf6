// A peer: ws under Node.js, with the loop over clients that its documentation has.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

import { obey } from "./control.mjs";

// The package is in the folder that the command names.
const require = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { WebSocket, WebSocketServer } = require("ws");

const server = createServer();
const wss = new WebSocketServer({ server });

await obey(
  server,
  () => wss.clients.size,
  (text) => {
    for (const client of wss.clients) {
      if (client.readyState === WebSocket.OPEN) client.send(text);
    }
  },
);
