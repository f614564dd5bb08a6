"""SCRAM against the RFC's example, against itself in both roles, and against what PostgreSQL 18 answers to bad input.

The expected errors were recorded from PostgreSQL: severity, SQLSTATE, message and detail are its own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from random import Random

import pytest

from protocol.saslprep import prepare_password, saslprep
from protocol.scram import (
    MAX_CLIENT_ITERATIONS,
    SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS,
    ScramClient,
    ScramError,
    ScramServer,
    ScramVerifier,
    mock_verifier,
    tls_server_end_point,
)

BINDING = b"\x5a" * 32
VERIFIER = ScramVerifier.build("pencil", 64, salt=b"0123456789abcdef")
PROOF = base64.b64encode(b"x" * 32)


def server(*, binding: bytes | None = None, verifier: ScramVerifier = VERIFIER) -> ScramServer:
    return ScramServer(verifier, channel_binding=binding, role="joe", server_nonce="SERVER")


def run(client: ScramClient, against: ScramServer) -> None:
    mechanism, first = client.first(against.mechanisms())
    client.verify(against.final(client.respond(against.first(mechanism, first))))


def test_example_of_rfc_7677() -> None:
    verifier = ScramVerifier.build("pencil", 4096, salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    scram = ScramServer(verifier, channel_binding=None, server_nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    nonce = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    assert (
        scram.first(SCRAM_SHA_256, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
        == b"r=" + nonce + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = b"c=biws,r=" + nonce + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert scram.final(final) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("server_binding", [None, BINDING])
@pytest.mark.parametrize("client_binding", [None, BINDING])
def test_right_password_is_proved_both_ways(server_binding: bytes | None, client_binding: bytes | None) -> None:
    against = server(binding=server_binding)
    client = ScramClient("joe", "pencil", channel_binding=client_binding)
    run(client, against)
    assert against.client_key is not None


def test_plus_is_chosen_where_both_can() -> None:
    assert server(binding=BINDING).mechanisms() == [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]
    assert server().mechanisms() == [SCRAM_SHA_256]
    client = ScramClient(password="x", channel_binding=BINDING, client_nonce="N")
    assert client.first([SCRAM_SHA_256_PLUS, SCRAM_SHA_256]) == (
        SCRAM_SHA_256_PLUS,
        b"p=tls-server-end-point,,n=,r=N",
    )
    assert client.first([SCRAM_SHA_256]) == (SCRAM_SHA_256, b"y,,n=,r=N")
    assert ScramClient(password="x", client_nonce="N").first([SCRAM_SHA_256_PLUS, SCRAM_SHA_256])[1] == b"n,,n=,r=N"


def test_required_binding_refuses_a_server_without_it() -> None:
    client = ScramClient(password="x", channel_binding=BINDING, require_channel_binding=True)
    with pytest.raises(ScramError, match="channel binding is required"):
        client.first([SCRAM_SHA_256])


def test_unknown_mechanisms_are_refused_by_the_client() -> None:
    with pytest.raises(ScramError, match="none of the server's SASL"):
        ScramClient(password="x").first(["OAUTHBEARER"])


def test_binding_to_another_certificate_fails() -> None:
    with pytest.raises(ScramError) as caught:
        run(ScramClient(password="pencil", channel_binding=b"\1" * 32), server(binding=BINDING))
    assert (caught.value.sqlstate, caught.value.message) == ("28000", "SCRAM channel binding check failed")


def test_offer_that_lost_plus_on_its_way_is_noticed() -> None:
    client = ScramClient(password="pencil", channel_binding=BINDING)
    mechanism, first = client.first([SCRAM_SHA_256])
    with pytest.raises(ScramError) as caught:
        server(binding=BINDING).first(mechanism, first)
    assert (caught.value.sqlstate, caught.value.message) == ("28000", "SCRAM channel binding negotiation error")


def test_wrong_password_is_28p01() -> None:
    with pytest.raises(ScramError) as caught:
        run(ScramClient(password="pen"), server())
    assert (caught.value.sqlstate, caught.value.severity) == ("28P01", "FATAL")
    assert caught.value.message == 'password authentication failed for user "joe"'


def test_recovered_keys_log_in_under_the_same_verifier() -> None:
    first = server()
    run(ScramClient(password="pencil"), first)
    assert first.keys is not None
    run(ScramClient(keys=first.keys), server())
    other = ScramVerifier.build("pencil", 64, salt=b"another salt")
    with pytest.raises(ScramError):
        run(ScramClient(keys=first.keys), server(verifier=other))


def test_no_keys_before_the_proof() -> None:
    scram = server()
    scram.first(SCRAM_SHA_256, b"n,,n=,r=abc")
    assert scram.client_key is None
    assert scram.keys is None


def test_impostor_server_is_noticed() -> None:
    impostor = ScramVerifier(VERIFIER.iterations, VERIFIER.salt, VERIFIER.stored_key, b"\0" * 32)
    with pytest.raises(ScramError, match="incorrect server signature"):
        run(ScramClient(password="pencil"), server(verifier=impostor))


def test_secrets_do_not_show_in_repr() -> None:
    scram = server()
    run(ScramClient(password="pencil"), scram)
    assert "stored_key" not in repr(VERIFIER)
    assert repr(scram.keys) == "ScramKeys()"


PLAIN, PLUS = SCRAM_SHA_256, SCRAM_SHA_256_PLUS
MALFORMED = "malformed SCRAM message"
INVALID = "client selected an invalid SASL authentication mechanism"
WITHOUT_BINDING = "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data."
WITH_BINDING = (
    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data."
)
DOWNGRADED = (
    "The client supports SCRAM channel binding but thinks the server does not.  "
    "However, this server does support channel binding."
)

# What the client sends first -> what PostgreSQL says to it.
FIRST_ERRORS: list[tuple[bytes | None, str, bytes, str, str, str | None]] = [
    (None, PLAIN, b"", "08P01", MALFORMED, "The message is empty."),
    (None, PLAIN, b"n,,n=,r=abc\0d", "08P01", MALFORMED, "Message length does not match input length."),
    (None, "SCRAM-SHA-1", b"n,,n=,r=abc", "08P01", INVALID, None),
    (None, PLUS, b"n,,n=,r=abc", "08P01", INVALID, None),
    (None, PLAIN, b"x,,n=,r=abc", "08P01", MALFORMED, "Unexpected channel-binding flag \"'x'\"."),
    (None, PLAIN, b"\x01,,n=,r=abc", "08P01", MALFORMED, 'Unexpected channel-binding flag "0x01".'),
    (None, PLAIN, b"n", "08P01", MALFORMED, 'Comma expected, but found character "0x00".'),
    (None, PLAIN, b"nn,,", "08P01", MALFORMED, "Comma expected, but found character \"'n'\"."),
    (None, PLAIN, b"n,a=x,n=,r=a", "0A000", "client uses authorization identity, but it is not supported", None),
    (None, PLAIN, b"n,b,n=,r=a", "08P01", MALFORMED, "Unexpected attribute \"'b'\" in client-first-message."),
    (None, PLAIN, b"n,,m=x,n=,r=a", "0A000", "client requires an unsupported SCRAM extension", None),
    (None, PLAIN, b"n,,r=a", "08P01", MALFORMED, 'Expected attribute "n" but found "\'r\'".'),
    (None, PLAIN, b"n,,n", "08P01", MALFORMED, 'Expected character "=" for attribute "n".'),
    (None, PLAIN, b"n,,n=", "08P01", MALFORMED, 'Expected attribute "r" but found "0x00".'),
    (None, PLAIN, b"n,,n=,r=a\x01b", "08P01", "non-printable characters in SCRAM nonce", None),
    (None, PLAIN, b"n,,n=,r=abc,1=2", "08P01", MALFORMED, "Attribute expected, but found invalid character \"'1'\"."),
    (None, PLAIN, b"n,,n=,r=abc,x", "08P01", MALFORMED, 'Expected character "=" for attribute "x".'),
    (None, PLAIN, b"p=tls-server-end-point,,n=,r=abc", "08P01", MALFORMED, WITH_BINDING),
    (BINDING, PLAIN, b"y,,n=,r=abc", "28000", "SCRAM channel binding negotiation error", DOWNGRADED),
    (BINDING, PLUS, b"n,,n=,r=abc", "08P01", MALFORMED, WITHOUT_BINDING),
    (BINDING, PLUS, b"y,,n=,r=abc", "08P01", MALFORMED, WITHOUT_BINDING),
    (BINDING, PLUS, b"p=tls-unique,,n=,r=abc", "08P01", 'unsupported SCRAM channel-binding type "tls-unique"', None),
    (
        BINDING,
        PLUS,
        b"p=tls-\xffunique-and-more-than-thirty-characters,,n=,r=abc",
        "08P01",
        'unsupported SCRAM channel-binding type "tls-?unique-and-more-than-thir"',
        None,
    ),
    (
        BINDING,
        PLUS,
        b"p=tls-server-end-point",
        "08P01",
        MALFORMED,
        'Unexpected attribute "0x00" in client-first-message.',
    ),
    (BINDING, PLUS, b"p", "08P01", MALFORMED, 'Expected character "=" for attribute "p".'),
]


@pytest.mark.parametrize(("binding", "mechanism", "first", "sqlstate", "message", "detail"), FIRST_ERRORS)
def test_bad_first_message_gets_the_error_of_postgresql(
    binding: bytes | None, mechanism: str, first: bytes, sqlstate: str, message: str, detail: str | None
) -> None:
    with pytest.raises(ScramError) as caught:
        server(binding=binding).first(mechanism, first)
    error = caught.value
    assert (error.severity, error.sqlstate, error.message, error.detail) == ("FATAL", sqlstate, message, detail)


def test_empty_nonce_is_taken_as_postgresql_takes_it() -> None:
    assert server().first(SCRAM_SHA_256, b"n,,n=,r=").startswith(b"r=SERVER,")


def test_missing_initial_response_gets_an_empty_challenge() -> None:
    scram = server()
    assert scram.first(SCRAM_SHA_256, None) == b""
    assert scram.first(SCRAM_SHA_256, b"n,,n=,r=abc").startswith(b"r=abcSERVER,")


FINAL_ERRORS: list[tuple[bytes, str, str, str | None]] = [
    (b"c=biws,r=NONCE,p=" + PROOF, "28P01", 'password authentication failed for user "joe"', None),
    (b"c=biws,r=NONCE,p=" + PROOF + b",", "28P01", 'password authentication failed for user "joe"', None),
    (b"c=biws,r=NONCE,q=1,p=" + PROOF, "28P01", 'password authentication failed for user "joe"', None),
    (b"c=eSws,r=NONCE,p=" + PROOF, "08P01", "unexpected SCRAM channel-binding attribute in client-final-message", None),
    (b"c=biws,r=xx,p=" + PROOF, "08P01", "invalid SCRAM response", "Nonce does not match."),
    (b"c=biws,r=NONCE,p=xx", "08P01", MALFORMED, "Malformed proof in client-final-message."),
    (b"c=biws,r=NONCE,p=" + PROOF + b",z=1", "08P01", MALFORMED, "Garbage found at the end of client-final-message."),
    (b"c=biws,r=NONCE", "08P01", MALFORMED, "Attribute expected, but found end of string."),
    (b"r=xx", "08P01", MALFORMED, 'Expected attribute "c" but found "\'r\'".'),
    (b"", "08P01", MALFORMED, "The message is empty."),
    (b"c=biws,r=NONCE,=1", "08P01", MALFORMED, "Attribute expected, but found invalid character \"'='\"."),
    (b"c=biws,r=NONCE,p\xc3\xa4", "08P01", MALFORMED, 'Expected character "=" for attribute "p".'),
]


@pytest.mark.parametrize(("final", "sqlstate", "message", "detail"), FINAL_ERRORS)
def test_bad_final_message_gets_the_error_of_postgresql(
    final: bytes, sqlstate: str, message: str, detail: str | None
) -> None:
    scram = server()
    scram.first(SCRAM_SHA_256, b"n,,n=,r=abc")
    with pytest.raises(ScramError) as caught:
        scram.final(final.replace(b"NONCE", b"abcSERVER"))
    error = caught.value
    assert (error.severity, error.sqlstate, error.message, error.detail) == ("FATAL", sqlstate, message, detail)


def test_final_before_first_is_refused() -> None:
    with pytest.raises(ScramError):
        server().final(b"c=biws,r=SERVER,p=" + PROOF)


@pytest.mark.parametrize(
    "server_first",
    [
        b"",
        b"r=other,s=AAAA,i=1",
        b"r=N,i=1",
        b"r=Nx,s=,i=1",
        b"r=Nx,s=!,i=1",
        b"r=Nx,s=AAAA,i=0",
        b"r=Nx,s=AAAA,i=-1",
        b"r=Nx,s=AAAA,i=x",
        b"r=Nx,s=AAAA,i=" + b"9" * 5000,
        b"r=Nx,s=AAAA,i=" + str(MAX_CLIENT_ITERATIONS + 1).encode(),
        b"e=invalid-proof",
    ],
)
def test_bad_server_first_message_is_refused_by_the_client(server_first: bytes) -> None:
    client = ScramClient(password="x", client_nonce="N")
    client.first()
    with pytest.raises(ScramError):
        client.respond(server_first)


@pytest.mark.parametrize("final", [b"", b"v=", b"v=AAAA", b"e=other-error", b"x=1", b"v=" + PROOF])
def test_bad_server_final_message_is_refused_by_the_client(final: bytes) -> None:
    client = ScramClient(password="x", client_nonce="N")
    client.first()
    client.respond(b"r=Nx,s=AAAA,i=1")
    with pytest.raises(ScramError):
        client.verify(final)


def test_client_needs_exactly_one_secret() -> None:
    with pytest.raises(ValueError, match="either"):
        ScramClient("joe")


def test_verifier_is_postgresqls_text() -> None:
    text = str(VERIFIER)
    assert text.startswith("SCRAM-SHA-256$64:MDEyMzQ1Njc4OWFiY2RlZg==$")
    assert ScramVerifier.parse(text) == VERIFIER
    assert VERIFIER.verify_password("pencil")
    assert not VERIFIER.verify_password("pen")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "md5" + "0" * 32,
        "SCRAM-SHA-256",
        "SCRAM-SHA-256$4096",
        "SCRAM-SHA-256$x:AAAA$" + "A" * 43 + "=:" + "A" * 43 + "=",
        "SCRAM-SHA-256$0:AAAA$" + "A" * 43 + "=:" + "A" * 43 + "=",
        "SCRAM-SHA-256$1:AAAA$AAAA:" + "A" * 43 + "=",
        "SCRAM-SHA-256$1:!$" + "A" * 43 + "=:" + "A" * 43 + "=",
        "SCRAM-SHA-512$1:AAAA$" + "A" * 43 + "=:" + "A" * 43 + "=",
    ],
)
def test_what_is_no_verifier_is_none(text: str | None) -> None:
    assert ScramVerifier.parse(text) is None


def test_mock_verifier_is_stable_and_never_verifies() -> None:
    secret = b"s" * 32
    mock = mock_verifier("nobody", secret)
    assert mock == mock_verifier("nobody", secret)
    assert mock.salt != mock_verifier("nobodx", secret).salt
    assert mock.salt != mock_verifier("nobody", b"t" * 32).salt
    assert len(mock.salt) == 16
    with pytest.raises(ScramError) as caught:
        run(ScramClient(password="pencil"), server(verifier=mock))
    assert caught.value.sqlstate == "28P01"
    known = ScramVerifier(VERIFIER.iterations, VERIFIER.salt, VERIFIER.stored_key, VERIFIER.server_key, is_mock=True)
    with pytest.raises(ScramError):
        run(ScramClient(password="pencil"), server(verifier=known))


@pytest.mark.parametrize(
    ("name", "length"), [("sha256", 32), ("SHA-384", 48), ("sha512", 64), ("md5", 32), ("sha1", 32), ("SHA-1", 32)]
)
def test_certificate_hash_follows_rfc_5929(name: str, length: int) -> None:
    binding = tls_server_end_point(b"der", name)
    assert binding is not None
    assert len(binding) == length


def test_certificate_without_a_hash_has_no_binding() -> None:
    assert tls_server_end_point(b"der", None) is None


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),  # the examples of RFC 4013
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("\u0007", None),
        ("\u0627\u0031", None),
        ("\u00a0", " "),
        ("\u00ad", None),
        ("\u0627\u0628", "\u0627\u0628"),
        ("\u0627a\u0628", None),
        ("\u0221", None),  # not assigned in Unicode 3.2
        ("\u2090", None),  # nor this, though its normal form is "a": PostgreSQL looks before normalizing
        ("\u200b", " "),  # in the table of spaces and in that of nothing
    ],
)
def test_saslprep(text: str, prepared: str | None) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize(
    ("password", "used"),
    [
        ("pencil", b"pencil"),
        ("\x07", b"\x07"),
        ("I\u00adX", b"IX"),
        ("\u00ad", "\u00ad".encode()),
        (b"\xff\xfe", b"\xff\xfe"),
        ("\udcff", b"\xff"),
        ("\u0221", "\u0221".encode()),
    ],
)
def test_password_that_cannot_be_prepared_is_used_raw(password: str | bytes, used: bytes) -> None:
    assert prepare_password(password) == used


def _with_prefix(take: Callable[[bytes], object], prefix: bytes) -> Callable[[bytes], object]:
    return lambda data: take(prefix + data)


@pytest.mark.parametrize("step", ["first", "plus", "final", "respond", "verify"])
def test_any_bytes_end_in_a_scram_error_or_an_answer(step: str) -> None:
    rng = Random(5)
    alphabet = b"n,=rp\0c\xffe1y"

    def attempt(take: Callable[[bytes], object]) -> None:
        try:
            take(bytes(rng.choices(alphabet, k=rng.randrange(30))))
        except ScramError:
            pass

    for _ in range(500):
        if step == "first":
            attempt(lambda data: server().first(SCRAM_SHA_256, data))
        elif step == "plus":
            attempt(lambda data: server(binding=BINDING).first(SCRAM_SHA_256_PLUS, b"p=" + data))
        elif step == "final":
            scram = server()
            scram.first(SCRAM_SHA_256, b"n,,n=,r=abc")
            attempt(_with_prefix(scram.final, b"c=biws,r="))
        else:
            client = ScramClient(password="x", client_nonce="n")
            client.first()
            attempt(client.respond if step == "respond" else client.verify)
