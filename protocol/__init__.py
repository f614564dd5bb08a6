"""The PostgreSQL wire protocol, versions 3.0 and 3.2, for both ends. Pure: bytes and messages, no I/O, no clock.

Standard library only, and none of asyncio, socket, ssl, select or threading. Import from the modules:

    codes               every letter, number and limit of the protocol
    buffer, fields      packing; the kinds of fields messages are declared with
    message             what a declaration gives: encode, decode, trace, fuzz seed
    startup, auth_messages, frontend_messages, backend_messages, copy_messages
                        the declarations
    registry            direction, type byte and phase -> message
    framing             a stream cut anywhere -> frames
    session_machine     the conversation as one table of (state, event) -> state
    backend_machine     the client's view of it, with pipelining
    connection          framing and machine of one end: start here to see how it fits together
    scan, expectations  the query path: boundaries in raw buffers, and what a backend still owes
    scram, saslprep, passwords
                        authentication, both roles
    errors, sqlstate    ProtocolError, PgError and PostgreSQL's SQLSTATEs (generated)
    values              text and binary forms of the types we emit ourselves
    trace               conversations as text, in PQtrace's format

Only ProtocolError escapes from decoding, whatever the bytes. `docs/protocol-support.md` lists what is supported,
message by message.
"""
