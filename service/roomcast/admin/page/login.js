/** The form to log in. Its cookie is set by the server, and no script can read it. */

const byId = (id) => document.getElementById(id);
const form = byId("form");
const password = byId("password");
const error = byId("error");
const submit = byId("submit");

const ENDED = "roomcast-admin-ended";

function say(text) {
  error.textContent = text;
  password.setAttribute("aria-invalid", text ? "true" : "false");
}

if (sessionStorage.getItem(ENDED)) {
  sessionStorage.removeItem(ENDED);
  byId("notice").textContent = "Your session has ended. Log in again to go on.";
  byId("notice").hidden = false;
}
if (!window.isSecureContext) {
  say("This address is neither HTTPS nor this machine's own: the browser will not keep a session. Open the page over HTTPS.");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!password.value) {
    say("Enter the password.");
    password.focus();
    return;
  }
  submit.disabled = true;
  submit.textContent = "Checking…";
  say("");
  try {
    const answer = await fetch("/admin/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ password: password.value }),
    });
    if (answer.ok) {
      window.location.reload();
      return;
    }
    say(await reason(answer));
  } catch {
    say("The server does not answer. Try again in a moment.");
  }
  submit.disabled = false;
  submit.textContent = "Log in";
  password.select();
  password.focus();
});

async function reason(answer) {
  if (answer.status === 401) return "That is not the password.";
  if (answer.status === 429) {
    const { wait_s: waitS } = await answer.json();
    return `Too many attempts. Try again in ${waitS > 90 ? `${Math.ceil(waitS / 60)} minutes` : `${waitS} s`}.`;
  }
  return `The server refused (${answer.status}).`;
}
