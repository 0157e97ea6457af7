"""What of a URL is shown, and where its password ends."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quorin.engine.urls import is_malformed, secrets_in, shown, split_credentials, without_secrets
from tests.support.passwords import urls_with_passwords, without_password


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:6379", "redis://host:6379"),
        ("redis://:6379/", "redis://:6379/"),
        ("redis://user:s3cret@host:1/0", "redis://host:1/0"),
        ("redis://us er:s3 cr\net@host", "redis://host"),
        ("redis://:s3@cret@host", "redis://host"),
        ("redis://h/0?password=s3@cret", "redis://h/0"),
        ("redis://h:1/0?db=1&password=s3@cret", "redis://h:1/0"),
        ("rediss://u:s3cret@[::1]:6380/2", "rediss://[::1]:6380/2"),
        ("redis://u:s3@cret@a:1,[::1]:2,c/0?x=1&cluster=true", "redis://a:1,[::1]:2,c/0"),
        ("redis+sentinel://u:s3cret@a:1,b/svc-1/0?sentinel_password=s3@cret", "redis+sentinel://a:1,b/svc-1/0"),
        ("rediss+sentinel://a/svc?sentinel_username=u@x", "rediss+sentinel://a/svc"),
        ("unix:///run/r@2.sock?password=s3cret&db=1", "unix:///run/r@2.sock"),
        ("unix://:s3cret@/run/r.sock", "unix:///run/r.sock"),
        ("s3://KEY:s3cret@bucket/features/a b?region=eu", "s3://bucket/features/a b"),
        ("s3://bucket/day@2024", "s3://bucket/day@2024"),
        ("file:///srv/job@2/history", "file:///srv/job@2/history"),
    ],
)
def test_a_url_is_shown_without_user_password_and_query(url: str, expected: str) -> None:
    assert not is_malformed(url)
    assert shown(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://user:s3/cret@host:1/0", "redis://…"),
        ("redis://:s3?cret@host", "redis://…"),
        ("redis://:s3#cret@host", "redis://…"),
        ("redis://user:12/cret@host:1/0", "redis://…"),
        ("redis://user:12?cret=@host:1/0", "redis://…"),
        ("redis://u:s3cret", "redis://…"),
        ("redis://:a@b's3cret", "redis://…"),
        ("redis://h/0?password=s3#cret", "redis://…"),
        ("redis://h:port/0", "redis://…"),
        ("redis://u:12,s3cret", "redis://…"),
        ("redis://u:12,s3/cret@h?cluster=true", "redis://…"),
        ("redis://h,g?cluster=truest", "redis://…"),
        ("http://u:12,s3cret", "http://…"),
        ("redis+sentinel://u:12,s3cret", "redis+sentinel://…"),
        ("redis+sentinel://u:12/s3cret@h:1/svc", "redis+sentinel://…"),
        ("redis+sentinel://u:12?s3cret@h:1/svc", "redis+sentinel://…"),
        ("redis+sentinel://h:1", "redis+sentinel://…"),
        ("redis://h/features", "redis://…"),
        ("unix://:s3/cret@/run/r.sock", "unix://…"),
        ("unix://:s3@/cret@/run/r.sock", "unix://…"),
        ("unix://run/r.sock", "unix://…"),
        ("s3://KEY:12/cret@bucket/features", "s3://…"),
        ("u:s3cret@rdis://h", "…"),
        ("localhost:6379", "…"),
        ("", "…"),
    ],
)
def test_no_more_than_the_scheme_is_shown_of_a_malformed_url(url: str, expected: str) -> None:
    assert is_malformed(url)
    assert shown(url) == expected


@given(
    urls_with_passwords(
        *(f"{scheme}://{rest}" for scheme in ("redis", "rdis", "s3") for rest in ("u:PASSWORD@h:1/0", "u:PASSWORD")),
        "unix://:PASSWORD@/run/r.sock",
        "redis://h:1/0?db=1&password=PASSWORD",
        "redis://u:PASSWORD@h:1,g:2?cluster=true",
        "redis+sentinel://u:PASSWORD@h:1,g:2/svc/0",
        "redis+sentinel://u:PASSWORD",
        "redis+sentinel://h:1/svc?sentinel_password=PASSWORD",
        "u:PASSWORD@h:1",
    )
)
def test_nothing_of_a_password_is_shown(url: str) -> None:
    without_password(shown(url))


@given(st.text(), st.text())
@example("", "")
@example("a b", "p:/?#[]@%41é")
def test_what_is_escaped_is_split_off_as_it_is_meant(user: str, password: str) -> None:
    url = f"redis://{quote(user, safe='', errors='replace')}:{quote(password, safe='', errors='replace')}@h:1/2?db=3"
    meant = tuple(text.encode(errors="replace").decode() for text in (user, password))
    assert split_credentials(url) == ("redis://h:1/2?db=3", *meant)


def test_a_url_that_is_malformed_is_not_split() -> None:
    with pytest.raises(ValueError, match="malformed") as caught:
        split_credentials("redis://u:s3/cret@h")
    assert "cret" not in str(caught.value)


def test_secrets_are_hidden_as_they_are_written_and_as_they_are_meant() -> None:
    hidden = secrets_in("s3://KEY:a%2Fb@bucket/x")
    assert without_secrets("s3://KEY:a%2Fb@bucket: 'KEY' and 'a/b', (a%2Fb)", hidden) == (
        "s3://***@bucket: '***' and '***', (***)"
    )


def test_short_secrets_leave_other_words_whole() -> None:
    text = "Port could not be cast to integer value as 'u'"
    assert without_secrets(text, ["u"]) == text.replace("'u'", "'***'")
