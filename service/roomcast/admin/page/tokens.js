/** Whether a token is good, and what it allows. It goes to the server and is kept nowhere. */

import { el, facts, name, notice } from "./dom.js";
import { many, span, when } from "./format.js";

export class TokensView {
  title = "Tokens";
  #page;
  #found = el("div", { role: "status" });

  constructor(page) {
    this.#page = page;
    const input = el("textarea", { id: "token", rows: "5", spellcheck: "false", autocomplete: "off", autocapitalize: "none", maxlength: 8192 });
    const form = el("form", {
      class: "stack",
      onsubmit: (event) => {
        event.preventDefault();
        if (input.value.trim()) void this.#check(input.value.trim());
        else input.focus();
      },
    }, el("label", { for: "token" }, "Connection or subscription token"), input,
    el("div", { class: "actions" }, el("button", { type: "submit", class: "primary" }, "Check")));
    this.element = el("div", { class: "narrow" },
      el("p", { class: "quiet" }, "Judged with the keys of the node that serves this page, as a client's would be."), form, this.#found);
  }

  show() {}

  hide() {}

  async #check(token) {
    this.#found.replaceChildren(notice("", "Checking…"));
    try {
      const told = await this.#page.ask("check_token", { token });
      this.#found.replaceChildren(...(told.valid ? valid(told) : [notice("bad", `No server would take it: ${told.reason}.`)]));
    } catch (failure) {
      this.#found.replaceChildren(notice("bad", failure.message));
    }
  }
}

function valid(told) {
  const grants = [
    ...(told.allow?.length ? [told.allow.join(", ")] : []),
    ...(told.caps ?? []).map((cap) => `${cap.allow.join(", ") || "nothing"} in ${cap.channels.join(", ") || "none"}`),
  ];
  const leftS = told.expires_at === null ? null : told.expires_at - Date.now() / 1_000;
  return [
    notice("good", `Valid: a ${told.kind} token.`),
    facts(
      ["User", name(told.user, "none: anonymous")],
      ["Expires", leftS === null ? "never" : `${when(told.expires_at * 1_000)}, in ${span(leftS)}`],
      told.channel ? ["Channel", name(told.channel)] : null,
      told.client ? ["Only for client", name(told.client)] : null,
      told.subscribed_to?.length ? [many(told.subscribed_to.length, "subscription"), name(told.subscribed_to.join(", "))] : null,
      grants.length ? ["May", el("ul", {}, ...grants.map((grant) => el("li", {}, name(grant))))] : null,
      told.info === null ? null : ["Info", name(JSON.stringify(told.info))],
    ),
  ];
}
