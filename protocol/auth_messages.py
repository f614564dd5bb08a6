"""Authentication: the server's requests (all of them type 'R') and the client's answers (all of them type 'p').

Which answer a 'p' is depends on what was asked: see Phase and registry.decode.
"""

from __future__ import annotations

from protocol.codes import MAX_AUTH_TOKEN_LENGTH, AuthCode, BackendCode, Direction, FrontendCode
from protocol.fields import CString, CStringList, Remainder, Salt, SecretCString, SecretNullableBytes, SecretRemainder
from protocol.message import Message, message


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.OK)
class AuthenticationOk(Message):
    """The client is who it says."""


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.KERBEROS_V5)
class AuthenticationKerberosV5(Message):
    """Not used by any server since PostgreSQL 9.3."""


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.CLEARTEXT_PASSWORD)
class AuthenticationCleartextPassword(Message):
    """Send the password as it is."""


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.MD5_PASSWORD)
class AuthenticationMD5Password(Message):
    """Send the password hashed with this salt: passwords.md5_response."""

    salt: Salt


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.GSS)
class AuthenticationGSS(Message):
    """Start GSSAPI."""


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.GSS_CONTINUE)
class AuthenticationGSSContinue(Message):
    """GSSAPI or SSPI data."""

    data: Remainder


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.SSPI)
class AuthenticationSSPI(Message):
    """Start SSPI."""


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.SASL)
class AuthenticationSASL(Message):
    """Start SASL with one of these mechanisms, best first."""

    mechanisms: CStringList


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.SASL_CONTINUE)
class AuthenticationSASLContinue(Message):
    """A challenge."""

    data: Remainder


@message(BackendCode.AUTHENTICATION, Direction.BACKEND, prefix=AuthCode.SASL_FINAL)
class AuthenticationSASLFinal(Message):
    """The outcome: the server's proof."""

    data: Remainder


@message(FrontendCode.PASSWORD, Direction.FRONTEND, limit=MAX_AUTH_TOKEN_LENGTH)
class PasswordMessage(Message):
    """A password, plain or hashed."""

    password: SecretCString


@message(FrontendCode.PASSWORD, Direction.FRONTEND, limit=MAX_AUTH_TOKEN_LENGTH)
class SASLInitialResponse(Message):
    """The chosen mechanism and its first message; None where it has none."""

    mechanism: CString
    data: SecretNullableBytes


@message(FrontendCode.PASSWORD, Direction.FRONTEND, limit=MAX_AUTH_TOKEN_LENGTH)
class SASLResponse(Message):
    """The next message of the mechanism."""

    data: SecretRemainder


@message(FrontendCode.PASSWORD, Direction.FRONTEND, limit=MAX_AUTH_TOKEN_LENGTH)
class GSSResponse(Message):
    """GSSAPI or SSPI data."""

    data: SecretRemainder
