"""Secrets of every kind go; addresses and ordinary text stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.redact import redact

SECRET = "s3cr3t-W0rd"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host.example/x.jsonl",
        f"s3://AKIA{SECRET}:{SECRET}@bucket/key",
        f"s3://AKIA:a/b+c/{SECRET}/d@bucket/key",
        f'Invalid bucket name "AKIA:{SECRET}/x@bucket": must match',
        f"HTTP://{SECRET}@host.example/",
        f"zip://a.csv::https://user:{SECRET}@host.example/a.zip",
        f"cannot read ftp://u:{SECRET}@h/a: refused; https://v:{SECRET}@h/b too",
        f"http://u:p@{SECRET}@host/",
        f"https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}&X-Amz-Date=2020",
        f"https://b/k?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=1",
        f"https://a.blob.core.windows.net/c/b?sv=2020&sig={SECRET}&se=2030",
        f"https://storage.googleapis.com/b/o?X-Goog-Signature={SECRET}&GoogleAccessId={SECRET}",
        f"https://d.cloudfront.net/x?Policy={SECRET}&Key-Pair-Id={SECRET}",
        f"https://h/x?access_token={SECRET}#id_token={SECRET}",
        f"https://h/x?a=1;api_key={SECRET}",
        f"https://h/x?key={SECRET}&password={SECRET}&client_secret={SECRET}&jwt={SECRET}",
        f"abfs://c@account.dfs.core.windows.net/?sig={SECRET}",
    ],
)
def test_secrets_go(text):
    clean = redact(text)
    assert SECRET not in clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "https://host.example/a/b.jsonl?version=3&page=2#top",
        "crawl/2024/segment-0001.warc.gz",
        "mail someone@example.org about http://host.example/monkey=business",
        "a caption with key = value and sig=nature",
        "https://host/x?monkey=tail&design=blue",
        "s3://bucket/folder/file@2x.jpg",
        "https://host/@user/status?id=5",
        "http://host:8080/@user",
        'fetch.contact = "mailto:you@example.org"',
        "s3://bucket/a:b/c.tar",
    ],
)
def test_everything_else_stays(text):
    assert redact(text) == text


def test_values_of_secret_variables_go(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("PLAIN_SETTING", "ordinary-value")
    text = redact(f"refused: {SECRET}, hf_0123456789, ordinary-value")
    assert text == "refused: ***, ***, ordinary-value"


@given(st.text(max_size=200))
def test_any_text_is_redacted_once_and_for_all(text):
    assert redact(redact(text)) == redact(text)
