"""Password authentication other than SCRAM: what a client answers to an MD5 request, and checks against a stored form.

MD5 is here for the client role towards remote engines that still ask for it. RustyDB itself asks its clients for SCRAM
only, or for a cleartext password inside TLS where a host rule says so; `verify_password` then takes any stored form.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from protocol.scram import ScramVerifier

_MD5_PREFIX: Final = "md5"
_MD5_DIGITS: Final = 32


def md5_verifier(role: str, password: str) -> str:
    """What pg_authid.rolpassword holds: md5 of password and role name."""
    return _MD5_PREFIX + hashlib.md5(_raw(password) + _raw(role), usedforsecurity=False).hexdigest()


def md5_response(role: str, password: str, salt: bytes) -> str:
    """The PasswordMessage that answers AuthenticationMD5Password."""
    return md5_salted(md5_verifier(role, password), salt)


def md5_salted(verifier: str, salt: bytes) -> str:
    """What a client that knows the password must answer to `salt`, from the stored form alone."""
    inner = verifier.removeprefix(_MD5_PREFIX)
    return _MD5_PREFIX + hashlib.md5(inner.encode("ascii") + salt, usedforsecurity=False).hexdigest()


def is_md5_verifier(rolpassword: str) -> bool:
    """Is it `md5` and 32 hexadecimal digits?"""
    digits = rolpassword.removeprefix(_MD5_PREFIX)
    return (
        rolpassword.startswith(_MD5_PREFIX)
        and len(digits) == _MD5_DIGITS
        and all(char in "0123456789abcdef" for char in digits)
    )


def verify_password(role: str, password: str, rolpassword: str | None) -> bool:
    """Does a password sent in clear fit the stored form? Takes as long for every wrong password of one form.

    With a SCRAM verifier this runs PBKDF2: keep it off the event loop.
    """
    if rolpassword is None or not password:
        return False
    verifier = ScramVerifier.parse(rolpassword)
    if verifier is not None:
        return verifier.verify_password(password)
    if is_md5_verifier(rolpassword):
        return hmac.compare_digest(md5_verifier(role, password), rolpassword)
    return False


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
