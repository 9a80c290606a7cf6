// Carries out the commands of client.mjs, which come over standard input as lines of JSON, and
// writes what became of them. It ends with standard input.

import { createInterface } from 'node:readline';
import { Centrifuge } from 'centrifuge';
import { Centrifuge as ProtobufCentrifuge } from 'centrifuge/build/protobuf';
import { EventSource } from 'eventsource';
import WebSocket from 'ws';
import { driven } from './client.mjs';

const write = (line) => process.stdout.write(JSON.stringify(line) + '\n');
const carryOut = driven({
  Centrifuge,
  ProtobufCentrifuge,
  environment: {
    websocket: WebSocket,
    eventsource: EventSource,
    fetch,
    readableStream: ReadableStream,
  },
  write,
});

// Commands begin in the order they came; what waits for the server does not hold up those that
// follow.
createInterface({ input: process.stdin })
  .on('line', async (line) => write(await carryOut(JSON.parse(line))))
  .on('close', () => process.exit(0));
