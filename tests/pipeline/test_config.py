"""Every key is checked when loaded, and documented."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import Config, load_config
from pipeline.config.fetch import LATER_KEYS, PACING_KEYS, FetchConfig
from pipeline.errors import ConfigError
from pipeline.project import Project

SMALLEST = """
workspace = "work"
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "warc"
paths = ["crawl/*.warc.gz"]
[fetch]
contact = "mailto:you@example.org"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "wit.toml"
    path.write_text(text)
    return path


def test_the_smallest_config_has_the_papers_defaults(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    assert (config.balance.cap, config.balance.slack, config.seed) == (20_000, 2.0, 0)
    assert config.dedup.evals == "report"
    assert not config.fetch.allow_private_hosts


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("[balance]\ncapp = 3", r"unknown key balance\.capp; did you mean cap\? known keys are cap, slack"),
        ("[balance]\ncap = 0", r"balance\.cap = 0: input should be greater than or equal to 1"),
        ('[balance]\ncap = "20"', r"balance\.cap = '20': input should be a valid integer"),
        ("[balance]\nslack = 0.5", r"balance\.slack = 0\.5: input should be greater than or equal to 1"),
        ('[dedup]\nevals = "delete"', r"dedup\.evals = 'delete': input should be 'report' or 'remove'"),
        ("[dedup]\nmax_distance_bits = 40", r"dedup\.max_distance_bits = 40: input should be less than or equal to 31"),
        ('[[evals]]\nname = "x"\nkind = "tar"\npath = "y"', r"evals\[0\]\.kind = 'tar': input should be 'folder'"),
        ('[[evals]]\nname = "x"\nkind = "folder"', r"missing key evals\[0\]\.path"),
        (
            '[[evals]]\nname = "x"\nkind = "folder"\npath = "y"\n[[evals]]\nname = "x"\nkind = "folder"\npath = "z"',
            r"two evaluation sets have the name 'x'",
        ),
        (
            'also_obey = ["ai_crawler"]',
            r"fetch\.also_obey: 'ai_crawler' is not a preset list: did you mean 'ai-crawlers'",
        ),
        ('also_obey = ["GPT\\nBot"]', r"fetch\.also_obey\[0\] = 'GPT\\nBot': string should match pattern"),
        ("[fetch.consent]\nrls = false", r"unknown key fetch\.consent\.rls; did you mean rsl\?"),
        ("[blance]\ncap = 3", r"unknown key blance; did you mean balance\?"),
        ("[balance\ncap = 3", r"not valid TOML"),
    ],
)
def test_a_bad_value_is_one_line_with_key_value_and_what_is_allowed(tmp_path, change, line):
    with pytest.raises(ConfigError, match=line) as error:
        load_config(write(tmp_path, SMALLEST + change))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_several_problems_are_counted(tmp_path):
    with pytest.raises(ConfigError, match=r"\(and 1 more\)$"):
        load_config(write(tmp_path, SMALLEST + "[balance]\ncap = 0\nslack = 0"))


def test_a_contact_is_required_before_anything_leaves_the_machine(tmp_path):
    line = 'contact = "mailto:you@example.org"'
    with pytest.raises(ConfigError, match=r"contact.*mailto:"):
        load_config(write(tmp_path, SMALLEST.replace(line, 'contact = "you@example.org"')))
    with pytest.raises(ConfigError, match=r"fetch\.contact.*mailto:"):
        load_config(write(tmp_path, SMALLEST.replace(line, ""))).fetch.check_contact()
    load_config(write(tmp_path, SMALLEST.replace(line, "network = false"))).fetch.check_contact()
    load_config(write(tmp_path, SMALLEST)).fetch.check_contact()


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("cap = " + "9" * 5_000, "thousands of digits|4300 digits"),
        ("cap = 99999999999999999999999", "balance.cap = 99999999999999999999999"),
        ("slack = inf", "balance.slack = inf"),
        ("cap = nan", "balance.cap = nan"),
        ("cap = " + "[" * 5_000 + "]" * 5_000, "not valid TOML|balance.cap"),
    ],
)
def test_numbers_and_nesting_beyond_sense_are_one_short_line(tmp_path, key, line):
    with pytest.raises(ConfigError, match=line) as caught:
        load_config(write(tmp_path, SMALLEST + "[balance]\n" + key))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "wit.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_config(path) == load_config(write(tmp_path, SMALLEST))


def test_home_is_understood_and_variables_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = SMALLEST.replace('"work"', '"~/sets/work"')
    assert Project.load(write(tmp_path, config)).workspace.root == str(tmp_path / "home/sets/work")
    for name in ("$HOME/work", "${HOME}/work"):
        with pytest.raises(ConfigError, match=r'workspace = ".*": \$HOME is not replaced'):
            load_config(write(tmp_path, SMALLEST.replace('"work"', f'"{name}"')))
    for key, text in (
        ("fetch.consent.block_urls", '[fetch.consent]\nblock_urls = ["$HOME/urls.txt"]'),
        ("fetch.consent.block_image_hashes", '[fetch.consent]\nblock_image_hashes = ["a.txt", "${HOME}/b.txt"]'),
        ("dedup.detector", '[dedup]\ndetector = "$HOME/model.onnx"'),
    ):
        with pytest.raises(ConfigError, match=rf'{key} = ".*": \$HOME is not replaced'):
            load_config(write(tmp_path, f"{SMALLEST}\n{text}\n"))
    assert load_config(write(tmp_path, SMALLEST.replace('"work"', '"$no_such_variable"'))).workspace[0] == "$"


@pytest.mark.parametrize("name", ["s3://bucket/work[1]", "gs://bucket/a*", "memory://work?"])
def test_a_workspace_in_a_store_is_no_pattern(tmp_path, name):
    with pytest.raises(ConfigError, match=r'workspace = ".*": a URL with|workspace = .*: a URL with'):
        load_config(write(tmp_path, SMALLEST.replace('"work"', f'"{name}"')))
    for local in ("work[1]", "file:///tmp/work*"):
        assert load_config(write(tmp_path, SMALLEST.replace('"work"', f'"{local}"'))).workspace == local


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_recipes_load(recipe):
    load_config(recipe)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'workspace = "\xe9"')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.toml")


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        tables = [a for a in (*get_args(field.annotation), field.annotation) if isinstance(a, type)]
        table = next((t for t in tables if issubclass(t, BaseModel)), None)
        found |= keys(table, f"{prefix}{name}.") if table else {f"{prefix}{name}"}
    return found


def test_every_key_is_documented_and_no_other():
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9_.]+)`", row)}
    assert documented == keys(Config)


FETCH_CONTENT_KEYS = {
    "archives",
    "network",
    "allow_private_hosts",
    "agent",
    "resize",
    "format",
    "image_size",
    "jpeg_quality",
    "min_image_size",
    "max_aspect_ratio",
    "max_pixels",
    "max_bytes",
    "max_redirects",
    "also_obey",
    "consent",
}
"""Keys that change an image. Whoever adds a key decides: here, and a new key refetches; or in `PACING_KEYS`."""


def test_each_fetch_key_either_changes_an_image_or_is_declared_harmless(tmp_path):
    assert FetchConfig.model_fields.keys() == FETCH_CONTENT_KEYS | PACING_KEYS
    assert not FETCH_CONTENT_KEYS & PACING_KEYS
    assert load_config(write(tmp_path, SMALLEST)).fetch.content().keys() == FETCH_CONTENT_KEYS - LATER_KEYS
    assert LATER_KEYS < FETCH_CONTENT_KEYS
    changed = load_config(write(tmp_path, SMALLEST + 'resize = "none"\nformat = "png"')).fetch
    assert changed.content().keys() == FETCH_CONTENT_KEYS


def test_statements_of_pages_are_recorded_and_refetch_nothing(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    off = load_config(write(tmp_path, SMALLEST + "consent.pages = false"))
    assert off.fetch.content() == config.fetch.content()
    assert config.recipe()["fetch"]["consent"]["pages"] is True
    assert off.recipe()["fetch"]["consent"]["pages"] is False


def test_pacing_is_not_part_of_what_an_image_is(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    patient = load_config(write(tmp_path, SMALLEST + "timeout_s = 60.0\nhost_interval_s = 2.0\nconcurrency = 8"))
    smaller = load_config(write(tmp_path, SMALLEST + "image_size = 224"))
    assert patient.fetch.content() == config.fetch.content() != smaller.fetch.content()
    assert patient.recipe() == config.recipe() != smaller.recipe()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("contact", f"mailto:you@example.org{bad}")
            for bad in ("\n", "\r\nX: y", "\0", "\x7f", "\t", " me", "(", "é")
        ),
        *(
            ("gateway", f"http://gateway.example{bad}")
            for bad in ("\n", "\r\nX: y", "\0", "/", "/path", " ", ":x", ":0")
        ),
        ("gateway", "http://user:secret@gateway.example"),
        ("gateway", "https://gateway.example"),
        ("gateway", "http://"),
        *(
            ("signature_agent", f"https://example.org{bad}")
            for bad in ("\n", "\r\nX: y", "\0", " ", '/"', "/\\", "/é", "@", ":x")
        ),
        ("signature_agent", "http://example.org"),
        ("agent", "wit-pipeline\n"),
        ("agent", "wit pipeline"),
        ("agent", "wit\0"),
    ],
)
def test_what_stands_in_requests_is_checked(key, value):
    with pytest.raises(ValidationError, match=key):
        FetchConfig(**({"contact": "mailto:you@example.org"} | {key: value}))


@pytest.mark.parametrize(
    "gateway", ["http://127.0.0.1:8080", "http://gateway", "http://[::1]:80", "http://a_b.example"]
)
def test_gateways(gateway):
    assert FetchConfig(contact="mailto:you@example.org", gateway=gateway).gateway == gateway
