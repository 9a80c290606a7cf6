/** Who we are to the server: signed in with a token of the development server, or a guest without one. */

import { TokenRefused } from "./client.js";

const EARLY_MS = 1_000; // a token that ends so soon could be over when it arrives
const HTTP_UNAUTHORIZED = 401;

export class Tokens {
  name = ""; // of who is signed in; "" = a guest
  expiresAtMs = 0; // of the connection's token
  renewed = 0; // how often it has been replaced since signing in
  renewedForRoom = 0; // and the private room's token since entering

  #connection = "";

  /** From here on for `name`, or for a guest. */
  become(name) {
    this.name = name;
    this.#connection = "";
    this.expiresAtMs = 0;
    this.renewed = 0;
  }

  /** A fresh connection token; "" for a guest. */
  async connection() {
    const { name } = this;
    if (!name) return "";
    const { token, user, expires_at: expiresAtS } = await ask("/demo/token", { user: name });
    if (name !== this.name) throw new Error("somebody else has signed in meanwhile");
    this.name = user; // as the server spells it
    this.#connection = token;
    this.expiresAtMs = expiresAtS * 1_000;
    return token;
  }

  /** A fresh subscription token for a private channel; "" for a guest, whom the server will refuse. */
  async subscription(channel) {
    if (!this.name) return "";
    // It may end at the same moment as the room's.
    if (Date.now() > this.expiresAtMs - EARLY_MS) await this.connection();
    const request = async () => (await ask("/demo/subscription-token", { token: this.#connection, channel })).token;
    try {
      return await request();
    } catch (error) {
      if (error.status !== HTTP_UNAUTHORIZED) throw error;
      // It has ended all the same, by the server's clock: who we are must be said anew.
      await this.connection();
      return request();
    }
  }
}

async function ask(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) return response.json();
  if (response.status >= 500) throw new Error(`HTTP ${response.status}`);
  const { error } = await response.json();
  throw Object.assign(new TokenRefused(error.message), { status: response.status });
}
