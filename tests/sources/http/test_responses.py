"""Responses: statuses, requested waits, and failures as errors of landprior."""

from __future__ import annotations

import email.utils
import re
import ssl
import time

import pytest
import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from landprior.errors import (
    SourceBusyError,
    SourceError,
)
from landprior.sources.http.responses import check_status, retry_after, translate


def answer_of(status, **headers):
    answer = requests.Response()
    answer.status_code, answer.reason, answer.url = status, "Reason", "http://host/path?sig=secret"
    answer.headers = CaseInsensitiveDict(headers)
    return answer


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 599])
def test_temporary_statuses(status):
    with pytest.raises(SourceBusyError, match=f"^http://host/path answered {status} Reason$") as caught:
        check_status(answer_of(status, **{"Retry-After": "7"}))
    assert caught.value.wait == 7.0


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 410, 501, 505])
def test_permanent_statuses(status):
    with pytest.raises(SourceError, match=f"answered {status} Reason") as caught:
        check_status(answer_of(status))
    assert not isinstance(caught.value, SourceBusyError)
    assert ("access was denied" in str(caught.value)) == (status in {401, 403})
    check_status(answer_of(206))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), (" 120 ", 120.0), ("0", 0.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("²", None),
        ("9" * 400, None), ("Mon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015 07:28:00", None),
    ],
)  # fmt: skip
def test_retry_after(text, seconds):
    assert retry_after(answer_of(503, **{"Retry-After": text})) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_a_date(zone):
    date = email.utils.formatdate(time.time() + 90, usegmt=True).replace("GMT", zone)
    assert retry_after(answer_of(503, **{"Retry-After": date})) == pytest.approx(90, abs=2)


def refused(error):
    """Return the error that requests raises for a TLS error in urllib3."""
    within = urllib3.exceptions.SSLError(error)
    return requests.exceptions.SSLError(urllib3.exceptions.MaxRetryError(None, "/a", within))


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (requests.TooManyRedirects(), SourceBusyError, "http://host/a redirects in a loop"),
        (requests.ReadTimeout(), SourceBusyError, "http://host/a did not answer in time"),
        (requests.ConnectTimeout(), SourceBusyError, "http://host/a did not answer in time"),
        (requests.exceptions.ProxyError(), SourceBusyError, "http://host/a cannot be reached through the proxy"),
        (
            requests.ConnectionError("reset"),
            SourceBusyError,
            "http://host/a cannot be reached, or closed the connection",
        ),
        (requests.exceptions.SSLError("EOF in violation of protocol"), SourceBusyError, "cannot be reached, or closed"),
        (refused(ssl.SSLCertVerificationError(1, "self-signed")), SourceError, "the certificate of http://host/a"),
        (refused(ssl.SSLZeroReturnError(6, "closed")), SourceBusyError, "http://host/a cannot be reached"),
        (requests.exceptions.InvalidURL(), SourceError, r"http://host/a cannot be queried \(InvalidURL\)"),
    ],
)
def test_failures_are_translated(error, kind, said):
    failure = translate(error, "http://user:secret@host/a?sig=secret")
    assert type(failure) is kind
    assert re.match(f"(.* )?{said}", str(failure))
    assert "secret" not in str(failure)
