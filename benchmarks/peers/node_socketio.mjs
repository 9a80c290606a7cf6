// A peer: Socket.IO under Node.js, with `emit` to a room.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

import { obey } from "./control.mjs";

// The package is in the folder that the command names.
const require = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { Server } = require("socket.io");

const ROOM = "bench";
// So long that a run has no ping.
const NO_PING_MS = 3_600_000;

const server = createServer();
const io = new Server(server, { pingInterval: NO_PING_MS });
let clients = 0;
io.on("connection", (socket) => {
  socket.join(ROOM);
  clients += 1;
});

await obey(
  server,
  () => clients,
  (text) => io.to(ROOM).emit("publication", JSON.parse(text)),
);
