from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.upstream.retry_after import retry_after_secs

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "secs"),
    [
        (b"7", 7.0),
        (b" 120 ", 120.0),
        (b"0", 0.0),
        (b"9" * 400, 999_999_999.0),
        (b"Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        (b"Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
        (b"Wednesday, 21-Oct-15 07:28:30 GMT", 30.0),
        (b"soon", None),
        (b"-1", None),
        (b"1.5", None),
        (b"", None),
    ],
)
def test_seconds_and_dates(value: bytes, secs: float | None) -> None:
    headers = [(b"content-type", b"text/plain"), (b"retry-after", value)]
    assert retry_after_secs(headers, NOW) == secs


def test_without_the_header_nothing_is_said() -> None:
    assert retry_after_secs([(b"date", b"x")], NOW) is None


@given(st.binary(max_size=60))
def test_no_value_raises(value: bytes) -> None:
    secs = retry_after_secs([(b"retry-after", value)], NOW)
    assert secs is None or secs >= 0
