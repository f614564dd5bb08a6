"""MD5 as PostgreSQL does it, and passwords sent in clear against every stored form."""

from __future__ import annotations

import pytest

from protocol.passwords import is_md5_verifier, md5_response, md5_salted, md5_verifier, verify_password
from protocol.scram import ScramVerifier

SCRAM = str(ScramVerifier.build("secret", 16))


def test_md5_verifier_is_postgresqls() -> None:
    # SELECT 'md5' || md5('secretjoe')
    assert md5_verifier("joe", "secret") == "md5c59ec932d911ffdf487595b5a2adf973"
    assert is_md5_verifier(md5_verifier("joe", "secret"))


def test_response_follows_from_the_stored_form() -> None:
    assert md5_response("joe", "secret", b"salt") == md5_salted(md5_verifier("joe", "secret"), b"salt")
    assert md5_response("joe", "secret", b"salt") != md5_response("joe", "secret", b"pepp")


@pytest.mark.parametrize("text", ["", "md5", "md5" + "g" * 32, "md5" + "A" * 32, "md5" + "a" * 31, SCRAM])
def test_what_is_no_md5_verifier(text: str) -> None:
    assert not is_md5_verifier(text)


@pytest.mark.parametrize(
    ("password", "stored", "fits"),
    [
        ("secret", SCRAM, True),
        ("Secret", SCRAM, False),
        ("secret", md5_verifier("joe", "secret"), True),
        ("secret", md5_verifier("jim", "secret"), False),
        ("secret", "secret", False),  # no stored form: PostgreSQL has none in clear
        ("secret", None, False),
        ("", md5_verifier("joe", ""), False),  # an empty password never logs in
    ],
)
def test_password_in_clear(password: str, stored: str | None, fits: bool) -> None:
    assert verify_password("joe", password, stored) is fits
