"""Message boundaries over raw buffers, against a walk message by message."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from protocol import scan

ROW = scan.B_DATA_ROW


def walk(data: bytes, pos: int, kind: int) -> int:
    """The plain way: one message after the other."""
    while len(data) - pos >= scan.HEADER_BYTES and data[pos] == kind:
        end = pos + 1 + scan.length_at(data, pos + 1)[0]
        if end > len(data):
            break
        pos = end
    return pos


def row(body: bytes) -> bytes:
    return scan.message(b"D", body)


bodies = st.binary(max_size=12)
streams = st.lists(
    st.one_of(
        bodies.map(row),
        st.tuples(bodies, st.integers(1, 200)).map(lambda drawn: row(drawn[0]) * drawn[1]),
        bodies.map(lambda body: scan.message(b"C", body)),
        # rows whose bodies look like headers of rows
        st.integers(1, 60).map(lambda count: row(row(b"")) * count),
        st.integers(1, 60).map(lambda count: row(b"D\0\0\0\x09D\0\0\0\x04") * count),
    ),
    max_size=12,
).map(b"".join)


@given(streams, st.integers(0, 40))
@example(row(b"") * 1000, 0)
@example(row(b"ab") * 17 + row(b"abc") * 17, 3)
def test_a_run_of_rows_ends_where_a_walk_ends(stream: bytes, cut: int) -> None:
    data = stream[: len(stream) - cut] if cut else stream
    assert scan.skip_same_type(data, 0, ROW) == walk(data, 0, ROW)


@given(st.lists(bodies, max_size=40), st.integers(0, 50))
def test_a_run_may_begin_anywhere(drawn: list[bytes], start: int) -> None:
    data = b"".join(map(row, drawn))
    starts = [0]
    for body in drawn:
        starts.append(starts[-1] + 5 + len(body))
    pos = starts[start % len(starts)]
    assert scan.skip_same_type(data, pos, ROW) == len(data)


@given(st.binary(max_size=300), st.integers(0, 20), st.sampled_from([ROW, scan.B_COPY_DATA, 0]))
@example(b"D\xff\xff\xff\xff" * 40, 0, ROW)
@example(b"D\0\0\0\x04" * 40 + b"D\0\0\0", 0, ROW)
def test_any_bytes_are_safe(data: bytes, pos: int, kind: int) -> None:
    """A length below 4 is a broken stream: the walk would not end in its message, but never behind the data."""
    pos = min(pos, len(data))
    if any(0 <= scan.length_at(data, index)[0] < 4 for index in range(1, max(len(data) - 4, 1)) if len(data) >= 5):
        return
    assert scan.skip_same_type(data, pos, kind) == walk(data, pos, kind)


@given(st.binary(min_size=1, max_size=1), st.binary(max_size=40))
def test_a_message_has_the_length_it_says(kind: bytes, body: bytes) -> None:
    whole = scan.message(kind, body)
    assert whole[:1] == kind
    assert scan.length_at(whole, 1)[0] + 1 == len(whole) == 5 + len(body)


def test_a_prefix_of_a_row_is_not_skipped() -> None:
    data = row(b"abc") * 3
    for cut in range(1, 8):
        assert scan.skip_same_type(data[:-cut], 0, ROW) == 2 * len(row(b"abc"))
