// One client of the published JavaScript SDK, unchanged, as a test drives it: under Node.js
// (driver.mjs), or in a page of a browser (page.html).
//
// In, a command:           {"id": 1, "op": "publish", "channel": "news", "data": …}
// Out, what became of it:  {"id": 1, "result": …}, or
//                          {"id": 1, "error": {"code": …, "message": …}},
//                          and events as they happen:
//                          {"event": "publication", "channel": "news", …}

// `environment`: what the SDK does not find by itself where it runs. `write` gets the events.
// Returns what carries out a command.
export function driven({ Centrifuge, ProtobufCentrifuge, environment, write }) {
  let client;
  // With Protobuf the SDK passes payloads on as bytes; what they hold is the application's business.
  let outgoing = (data) => data;
  let incoming = (data) => data;
  // Of payloads that are bytes; no application sees it of others.
  let asText = () => null;
  let asBase64 = () => null;

  const person = (info) =>
    info && { user: info.user, client: info.client, conn_info: incoming(info.connInfo ?? null) };
  const message = (publication) => ({
    offset: publication.offset ?? 0,
    data: incoming(publication.data),
    text: asText(publication.data),
    base64: asBase64(publication.data),
    info: person(publication.info) ?? null,
  });

  // In binary channels payloads need be no JSON.
  function valueOf(text) {
    try {
      return JSON.parse(text);
    } catch {
      return null;
    }
  }

  // What the SDK calls when it wants another token: the application's answers in turn, then the last one.
  function giving(tokens, event) {
    const left = [...(tokens ?? [])];
    return left.length === 0
      ? null
      : async () => {
          write(event);
          return left.length > 1 ? left.shift() : left[0];
        };
  }

  // How the client reaches the server: by a WebSocket, or by the transports that are named, in turn.
  function reached(url, transports) {
    if (transports === undefined) return [url, {}];
    const { host } = new URL(url);
    const endpoints = transports.map((transport) =>
      transport === 'websocket'
        ? { transport, endpoint: url }
        : { transport, endpoint: `http://${host}/connection/${transport}` },
    );
    return [endpoints, { emulationEndpoint: `http://${host}/emulation` }];
  }

  function open({ url, token, fresh_tokens: freshTokens, protobuf, data, retry_ms: retryMs, transports }) {
    if (protobuf) {
      outgoing = (data) => new TextEncoder().encode(JSON.stringify(data));
      // What is absent is empty.
      asText = (data) => new TextDecoder().decode(data);
      asBase64 = (data) => btoa(Array.from(data ?? [], (byte) => String.fromCharCode(byte)).join(''));
      incoming = (data) => (data?.length ? valueOf(new TextDecoder().decode(data)) : null);
    }
    const [endpoints, options] = reached(url, transports);
    client = new (protobuf ? ProtobufCentrifuge : Centrifuge)(endpoints, {
      ...environment,
      ...options,
      token: token ?? '',
      getToken: giving(freshTokens, { event: 'token' }),
      data: data === undefined ? null : outgoing(data),
      minReconnectDelay: retryMs,
      maxReconnectDelay: retryMs,
    });
    client.on('connecting', ({ code, reason }) => write({ event: 'connecting', code, reason }));
    client.on('connected', (connected) =>
      write({
        event: 'connected',
        client: connected.client,
        data: incoming(connected.data ?? null),
        transport: connected.transport,
      }),
    );
    client.on('disconnected', ({ code, reason }) => write({ event: 'disconnected', code, reason }));
    client.on('error', ({ error, transport }) =>
      write({ event: 'error', code: error.code, message: error.message, transport }),
    );
    // Subscriptions that the server made.
    const tell = (event, channel, what) => write({ event, channel, server_side: true, ...what });
    client.on('subscribed', (subscribed) =>
      tell('subscribed', subscribed.channel, {
        was_recovering: subscribed.wasRecovering,
        recovered: subscribed.recovered,
        data: incoming(subscribed.data ?? null),
        position: subscribed.streamPosition ?? null,
      }),
    );
    client.on('unsubscribed', ({ channel }) => tell('unsubscribed', channel, {}));
    client.on('publication', (publication) =>
      tell('publication', publication.channel, message(publication)),
    );
    client.on('join', ({ channel, info }) => tell('join', channel, { info: person(info) }));
    client.on('leave', ({ channel, info }) => tell('leave', channel, { info: person(info) }));
  }

  function listen(subscription) {
    const { channel } = subscription;
    const tell = (event, what) => write({ event, channel, ...what });
    subscription.on('subscribing', ({ code, reason }) => tell('subscribing', { code, reason }));
    subscription.on('unsubscribed', ({ code, reason }) => tell('unsubscribed', { code, reason }));
    subscription.on('subscribed', (subscribed) =>
      tell('subscribed', {
        recoverable: subscribed.recoverable,
        positioned: subscribed.positioned,
        was_recovering: subscribed.wasRecovering,
        recovered: subscribed.recovered,
        data: incoming(subscribed.data ?? null),
        position: subscribed.streamPosition ?? null,
      }),
    );
    subscription.on('publication', (publication) => tell('publication', message(publication)));
    subscription.on('join', ({ info }) => tell('join', { info: person(info) }));
    subscription.on('leave', ({ info }) => tell('leave', { info: person(info) }));
    subscription.on('error', ({ error }) => tell('error', { code: error.code, message: error.message }));
  }

  const operations = {
    connect(command) {
      if (client === undefined) open(command);
      client.connect();
    },
    disconnect() {
      client.disconnect();
    },
    subscribe({ channel, token, fresh_tokens: freshTokens, since, delta, asks, filter }) {
      let subscription = client.getSubscription(channel);
      if (subscription === null) {
        subscription = client.newSubscription(channel, {
          token: token ?? '',
          getToken: giving(freshTokens, { event: 'sub_token', channel }),
          since: since ?? null,
          delta,
          positioned: asks?.includes('positioned'),
          recoverable: asks?.includes('recoverable'),
          joinLeave: asks?.includes('join_leave'),
          tagsFilter: filter,
        });
        listen(subscription);
      }
      subscription.subscribe();
    },
    // `type`: of a subscription that is none to a stream of publications.
    subscribe_otherwise({ channel, type }) {
      const subscription =
        type === 'map' ? client.newMapSubscription(channel) : client.newSharedPollSubscription(channel);
      listen(subscription);
      subscription.subscribe();
    },
    unsubscribe({ channel }) {
      client.getSubscription(channel).unsubscribe();
    },
    async publish({ channel, data }) {
      await client.publish(channel, outgoing(data));
    },
    // With Protobuf only.
    async publish_text({ channel, text }) {
      await client.publish(channel, new TextEncoder().encode(text));
    },
    // With Protobuf only.
    async publish_bytes({ channel, base64 }) {
      await client.publish(channel, Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)));
    },
    async history({ channel, limit, since, reverse }) {
      const { publications, offset, epoch } = await client.history(channel, { limit, since, reverse });
      return { publications: publications.map(message), offset, epoch };
    },
    async presence({ channel }) {
      const { clients } = await client.presence(channel);
      return Object.fromEntries(Object.entries(clients).map(([id, info]) => [id, person(info)]));
    },
    async presence_stats({ channel }) {
      const { numClients, numUsers } = await client.presenceStats(channel);
      return { num_clients: numClients, num_users: numUsers };
    },
    async rpc({ method, data }) {
      return incoming((await client.rpc(method, outgoing(data))).data);
    },
    async send({ data }) {
      await client.send(outgoing(data));
    },
    // All of them in one frame.
    async publish_together({ channel, items }) {
      client.startBatching();
      const published = items.map((data) => client.publish(channel, outgoing(data)));
      client.stopBatching();
      await Promise.all(published);
    },
  };

  return async function carryOut({ id, op, ...command }) {
    try {
      return { id, result: (await operations[op](command)) ?? null };
    } catch (error) {
      return { id, error: { code: error.code ?? -1, message: error.message ?? String(error) } };
    }
  };
}
