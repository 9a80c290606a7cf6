/** Questions before something is changed. The browser keeps the focus in an open dialog; it is given back at the end. */

import { el } from "./dom.js";

/**
 * Asks in words, with `fields` (elements of a form) between them and the buttons. `run()` is awaited when it is
 * confirmed: the dialog stays open with what it throws, and closes when it is done. Resolves with whether it was done.
 */
export function ask({ title, text, fields = [], confirm, danger = false, run }) {
  const from = document.activeElement;
  const error = el("p", { class: "error", role: "alert" });
  const go = el("button", { type: "submit", class: danger ? "danger" : "primary" }, confirm);
  const cancel = el("button", { type: "button", class: "plain" }, "Cancel");
  const form = el("form", { method: "dialog", novalidate: true },
    el("h2", { id: "dialog-title" }, title), el("p", {}, text), ...fields, error,
    el("div", { class: "actions" }, cancel, go));
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    let done = false;
    cancel.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (go.disabled) return;
      go.disabled = true;
      error.textContent = "";
      try {
        await run();
        done = true;
        dialog.close();
      } catch (failure) {
        error.textContent = failure.message;
        go.disabled = false;
        go.focus();
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (from?.isConnected) from.focus();
      resolve(done);
    });
    dialog.showModal();
    if (!fields.length) cancel.focus();
  });
}
