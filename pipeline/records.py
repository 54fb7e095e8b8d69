"""The vocabulary of the pipeline: the columns of every folder and the closed list of reasons.

Read this file first. Every stage reads and writes Arrow tables with one of the schemas below; every row that does not
go on carries one `Reason`. Nothing else ever removes a pair.
"""

import hashlib
import re
from enum import StrEnum

import pyarrow as pa

# A candidate that matched the allowlist. One row per (image URL, text): an image with an alt and a title text is two
# rows.
PAIRS = pa.schema(
    [
        ("uid", pa.string()),  # 32 hex characters, see `pair_uid`
        ("url", pa.string()),  # normalised absolute http(s) URL of the image
        ("caption", pa.string()),
        ("text_field", pa.string()),  # caption | alt | title | figcaption, or the column, of several captions
        ("page_url", pa.string()),  # empty when the source does not know the page
        ("source", pa.string()),  # the source file, as written in the config
        ("captured_at", pa.timestamp("ms", "UTC")),  # when the page was crawled; null where the source does not say
        ("source_offset", pa.int64()),  # where in `source` the page's record, or the image, starts; null: not known
        ("image_bytes", pa.int64()),  # the image is in `source`, this long, at `source_offset`; null: it is at `url`
        ("stated_hash", pa.string()),  # "sha256:HEX" or "md5:HEX" of the image file, as the source says
        ("extra", pa.string()),  # JSON object of other columns that the source was asked to keep, or a licence
        ("language", pa.string()),  # ISO 639 code by fastText, "und" when it is not sure
        ("query_ids", pa.list_(pa.int32())),  # sorted row numbers in the allowlist
    ]
)

# What to fetch: pairs that at least one query selects.
PLAN = PAIRS.append(pa.field("selected_by", pa.list_(pa.int32())))

# Facts about one fetched image. All null (width 0 is never written) for a pair that failed before they were known.
IMAGE_FACTS: list[tuple[str, pa.DataType]] = [
    ("status", pa.string()),  # success | failed_to_download | failed_to_resize (img2dataset's terms)
    ("reason", pa.string()),  # a `Reason`; null when status is success
    ("error_message", pa.string()),  # free text for people; programs use `reason`
    ("http_status", pa.int32()),
    ("width", pa.int32()),  # of the stored JPEG
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("sha256", pa.string()),  # of the bytes as downloaded, hex (as img2dataset)
    ("exif", pa.string()),  # JSON object of the downloaded image's EXIF tags, as img2dataset
    ("pdq", pa.binary(32)),  # 256-bit PDQ hash of the upright image
    ("pdq_quality", pa.int32()),  # 0..100; below 50 the hash is unreliable
    ("refused_by", pa.string()),  # the signal that refused, a `Signal` of pipeline.consent.policy; null if none did
    ("consent_checked", pa.string()),  # where consent was checked, in order: lists robots headers image
    ("consent_said", pa.string()),  # the statements, allowing or refusing, as "signal: text"; null if there were none
    ("rights", pa.string()),  # from the image file's metadata: the copyright notice,
    ("creator", pa.string()),  # who made it,
    ("license_url", pa.string()),  # and the URL of its licence
]

# One row for EVERY planned pair, in plan order.
FETCHED = pa.schema([*PLAN, *(pa.field(name, kind) for name, kind in IMAGE_FACTS)])

# One row per URL of a fetched part, in consent/: when consent was checked, and the robots.txt that was served then.
LEDGER = pa.schema(
    [
        ("url", pa.string()),
        ("checked_at", pa.timestamp("s", "UTC")),  # null if nothing was requested
        ("robots_at", pa.timestamp("s", "UTC")),  # of the last host in a chain of redirects
        ("robots_status", pa.int32()),  # HTTP status; null if there was no response
        ("robots_sha256", pa.string()),  # null if no file was served
        ("ended_at", pa.timestamp("s", "UTC")),  # when its outcome came
    ]
)

# One row per fetched pair with the decision of the dedup stage; reason null = the pair is in the final shards.
DECISIONS = pa.schema(
    [
        ("uid", pa.string()),
        ("reason", pa.string()),
        ("survivor", pa.string()),  # uid of the pair that represents this one, for duplicates
        ("selected_by", pa.list_(pa.int32())),  # by the final balance
        ("captions", pa.list_(pa.string())),  # the survivor's own caption first, then those of its duplicates
    ]
)

# One row per fetched pair that a block list names or a takedown took out.
LISTED = pa.schema(
    [
        ("uid", pa.string()),
        ("signal", pa.string()),  # takedown | block-list
        ("kept", pa.bool_()),  # the dedup stage had kept it: it leaves the tar
        ("selected_by", pa.list_(pa.int32())),  # of a pair that leaves the tar, by the final balance
    ]
)

# Where an image lies: `size` bytes from byte `offset` of the file `shard`, beside the table. Null for what has no
# image.
LOCATION = pa.schema([("shard", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

# Columns of shards/NNNNN.parquet: every row of the fetched part, failures and drops included. Of a pair that was taken
# down only the columns are left that say nothing of it: url, page_url and caption are empty, facts of the file null.
SHARD = pa.schema([pa.field("key", pa.string()), *FETCHED, pa.field("captions", pa.list_(pa.string())), *LOCATION])


SCORE = pa.field("score", pa.float32())
"""With `[scores]`, the last column of filtered/ and shards/: the cosine of image and caption; null where there is no
image, or a filter dropped it."""

DROPPED = "dropped"
"""`status` of a pair that was fetched but is not in the tar; see its `reason`."""


class Reason(StrEnum):
    """Why a row was dropped. A closed list: accounts are checked against it."""

    # pairs: reading and matching
    DAMAGED_RECORD = "damaged_record"  # a record or line that cannot be parsed
    DAMAGED_FILE = "damaged_file"  # the rest of a file that cannot be read (truncated gzip); counted once per file
    SOURCE_UNAVAILABLE = "source_unavailable"  # a file that could not be read now; once per file, the next run tries
    NO_URL = "no_url"
    BAD_URL = "bad_url"  # not http(s), no host, a blocked port, or too long
    NO_IMAGE = "no_image"  # a sample of a tar without one
    NO_CAPTION = "no_caption"
    CAPTION_TOO_LONG = "caption_too_long"
    UNDECODABLE_TEXT = "undecodable_text"  # contains U+FFFD: some of its bytes are not valid in the page's encoding
    REPEATED_TEXT = "repeated_text"  # the same image and text again on one page (a title equal to the alt)
    NO_MATCH = "no_match"
    # pairs: [filters], of the pairs that match
    HOST_NOT_ALLOWED = "host_not_allowed"  # filters.allow_hosts is set, and the image's host is not in it
    BLOCKED_HOST = "blocked_host"  # filters.block_hosts, of the image or the page
    FILE_NAME_CAPTION = "file_name_caption"
    URL_CAPTION = "url_caption"
    MARKUP = "markup"
    TOO_FEW_WORDS = "too_few_words"
    TOO_MANY_WORDS = "too_many_words"
    TOO_FEW_LETTERS = "too_few_letters"
    REPEATED_CHARACTERS = "repeated_characters"
    LANGUAGE = "language"  # not one of filters.languages
    # plan
    DUPLICATE_PAIR = "duplicate_pair"  # the same uid seen before, anywhere in the pool
    FREQUENT_CAPTION = "frequent_caption"  # the caption of more than filters.max_images_per_caption images of the pool
    NEAR_EQUAL_CAPTION = "near_equal_caption"  # its family of captions has filters.max_pairs_per_family pairs already
    OVER_CAP = "over_cap"  # no query selects it: each has `cap` pairs already
    OVER_HOST_CAP = "over_host_cap"  # its host has as many pairs as `fetch.hosts` or `max_pairs_per_host` allow
    # fetched
    BAD_SCHEME = "bad_scheme"
    PRIVATE_ADDRESS = "private_address"
    ROBOTS_DISALLOWED = "robots_disallowed"
    ROBOTS_UNREACHABLE = "robots_unreachable"  # RFC 9309 2.3.1.4: unreachable means disallowed
    OPTED_OUT = "opted_out"  # refused by a signal of pipeline/consent/, named in `refused_by`; in pairs: by the page
    PAYMENT_REQUIRED = "payment_required"  # 402
    BOT_WALL = "bot_wall"  # a challenge page, with any status
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    PROTOCOL_ERROR = "protocol_error"  # not HTTP, or connection lost before the headers
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"  # fewer bytes than announced, or the connection broke in the body
    TOO_LARGE = "too_large"  # more bytes than `max_bytes`, before or after content decoding
    TOO_MANY_REDIRECTS = "too_many_redirects"
    BAD_REDIRECT = "bad_redirect"
    HTTP_NOT_FOUND = "http_not_found"  # 404, 410
    HTTP_FORBIDDEN = "http_forbidden"  # 401, 403, 451
    HTTP_TOO_MANY_REQUESTS = "http_too_many_requests"  # 429, after the retries
    HTTP_CLIENT_ERROR = "http_client_error"  # any other 4xx
    HTTP_SERVER_ERROR = "http_server_error"  # 5xx, after the retries
    HTTP_UNEXPECTED = "http_unexpected"  # 1xx, 2xx without a body, 304 ...
    HOST_UNAVAILABLE = "host_unavailable"  # the circuit breaker of a host that keeps failing
    NOT_IN_ARCHIVES = "not_in_archives"  # fetch.archives only, network switched off
    HASH_MISMATCH = "hash_mismatch"  # not the file that the source states the hash of (sources.verify)
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    BROKEN_IMAGE = "broken_image"
    DECODER_CRASHED = "decoder_crashed"  # the process ended while it decoded this file
    TOO_MANY_PIXELS = "too_many_pixels"  # checked in the header, before any decode
    IMAGE_TOO_SMALL = "image_too_small"
    ASPECT_RATIO = "aspect_ratio"
    # filtered
    SINGLE_COLOUR = "single_colour"
    LOW_SCORE = "low_score"  # below scores.min, or not among the best scores.keep_fraction
    # dedup
    PLACEHOLDER_IMAGE = "placeholder_image"  # the same file behind more than filters.max_urls_per_image URLs
    OTHER_CAPTION_OF_SAME_IMAGE = "other_caption_of_same_image"  # its URL has another pair; `captions` keeps the text
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    EVAL_OVERLAP = "eval_overlap"  # dedup.evals = "remove"
    OVER_FINAL_CAP = "over_final_cap"


PYTHON_REASON = re.compile(r"python:[a-z][a-z0-9_]{0,47}")
"""Reasons of `[[filters.python]]`: the one open end of the list, marked as such."""


def is_reason(name: str) -> bool:
    """Return whether a row may be dropped for this."""
    return name in Reason.__members__.values() or PYTHON_REASON.fullmatch(name) is not None


RESIZE_REASONS = frozenset(
    {
        Reason.NOT_AN_IMAGE,
        Reason.UNSUPPORTED_FORMAT,
        Reason.BROKEN_IMAGE,
        Reason.DECODER_CRASHED,
        Reason.TOO_MANY_PIXELS,
        Reason.IMAGE_TOO_SMALL,
        Reason.ASPECT_RATIO,
    }
)
"""Reasons with the status failed_to_resize, as in img2dataset; all other fetch reasons have failed_to_download."""


def pair_uid(url: str, caption: str) -> str:
    """Return the id of a pair: blake2b-128 of the normalised URL, a newline, and the caption, in hex."""
    return hashlib.blake2b(f"{url}\n{caption}".encode(), digest_size=16).hexdigest()
