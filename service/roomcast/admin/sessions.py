"""Signs and reads what says that somebody logged in: cookies, and tickets for a WebSocket.

Both are text, four parts with points between them: until when it may be shown and when the session
ends (s since 1970), random characters that tell sessions apart, and a MAC of these. The key is made
from the hash of the password, which all nodes have: each node accepts what another has signed,
nobody stores sessions, and another password ends all of them. Whoever knows the hash can sign, so
it is a secret.

A cookie goes with each request of the page, and scripts cannot read it. A ticket is for one
`connect` soon after it was asked for. It names the end of the session, which is that of the
connection too.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

__all__ = ["TICKET_S", "TOKEN_CHARS_MAX", "Session", "Signer"]

# The time from a ticket to the `connect` that shows it.
TICKET_S: Final = 30
# No cookie or ticket is longer: checked before anything of it is looked at.
TOKEN_CHARS_MAX: Final = 200

_FORM: Final = re.compile(
    r"([0-9]{1,12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{8,64})\.([A-Za-z0-9_-]{43})"
)
_PURPOSE: Final = b"roomcast admin session, form 1"

Kind = Literal["cookie", "ticket"]


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who logged in. `ends_at`: s since 1970. `name`: random, tells sessions apart."""

    ends_at: int
    name: str


class Signer:
    """Signs with a key that is made from `password_hash`, the text of the configuration."""

    def __init__(self, password_hash: str) -> None:
        self._key = hmac.digest(password_hash.encode(), _PURPOSE, "sha256")

    def cookie(self, session: Session) -> str:
        """What the browser keeps until the session ends."""
        return self._signed("cookie", session.ends_at, session)

    def ticket(self, session: Session, now_s: float) -> str:
        """What a script may show within TICKET_S, for a connection that ends with the session."""
        return self._signed("ticket", min(session.ends_at, int(now_s) + TICKET_S), session)

    def session_of(self, kind: Kind, token: str, now_s: float) -> Session | None:
        """The session that `token` is signed for. None: it was never signed, or is over."""
        if len(token) > TOKEN_CHARS_MAX or (found := _FORM.fullmatch(token)) is None:
            return None
        shown_until, ends_at, name, mac = found.groups()
        session = Session(int(ends_at), name)
        expected = self._mac(kind, int(shown_until), session)
        if not hmac.compare_digest(expected, mac):
            return None
        return session if now_s < min(int(shown_until), session.ends_at) else None

    def _signed(self, kind: Kind, shown_until: int, session: Session) -> str:
        mac = self._mac(kind, shown_until, session)
        return f"{shown_until}.{session.ends_at}.{session.name}.{mac}"

    def _mac(self, kind: Kind, shown_until: int, session: Session) -> str:
        text = f"{kind} {shown_until} {session.ends_at} {session.name}"
        made = hmac.new(self._key, text.encode(), sha256).digest()
        return urlsafe_b64encode(made).decode().rstrip("=")
