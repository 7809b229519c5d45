"""Who a rater is: a credential is a name and the signature of the server's key under it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import unicodedata
from collections.abc import Collection
from typing import Any

MOST_CHARACTERS = 60


class Access:
    """Makes credentials and tells whose they are.

    invited: the names of those who may rate, each by a link of their own. None: everyone enters a name; the credential
    is then what keeps raters apart in one browser.
    """

    def __init__(self, key: bytes, invited: Collection[str] | None = None) -> None:
        self._key = key
        self.invited = None if invited is None else frozenset(invited)

    def credential(self, rater: str) -> str:
        """NAME.SIGNATURE in URL-safe base64; the same at every start of the server, so that links stay good."""
        return f"{_encode(rater.encode())}.{_encode(self._sign(rater))}"

    def rater(self, credential: Any) -> str | None:
        """Whose credential this is; None for one that is forged, garbled or of a name that is not invited."""
        try:
            name, signature = (_decode(part) for part in str(credential).split("."))
            rater = name.decode()
        except (ValueError, binascii.Error):
            return None
        genuine = hmac.compare_digest(signature, self._sign(rater))
        return rater if genuine and (self.invited is None or rater in self.invited) else None

    def _sign(self, rater: str) -> bytes:
        return hmac.digest(self._key, rater.encode(), hashlib.sha256)


def check_name(name: Any) -> str:
    """A name as it is kept: NFC, blanks collapsed. Raises ValueError for one that no one has."""
    if not isinstance(name, str):
        raise ValueError("the name is no text")
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name or len(name) > MOST_CHARACTERS or not name.isprintable():
        raise ValueError(f"a name has 1 to {MOST_CHARACTERS} printable characters")
    return name


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
