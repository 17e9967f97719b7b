"""YAML within bounds: small texts that would grow to gigabytes are refused at once."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from cxr_pipeline.configs.schema import ConfigError, load_config
from cxr_pipeline.configs.yaml_text import MAX_BYTES, MAX_VALUES, YamlError, parse_yaml, read_yaml

BILLION = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    + ["classes: *a8"]
)
MERGED = "a0: &a0 {k: v}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BILLION, f"more than {MAX_VALUES} values"),
        (MERGED, f"more than {MAX_VALUES} values"),
        ("a: &a [*a]", "within what it names"),
        ("a: &a {b: *a}", "within what it names"),
        ("[" * 20_000, "nested too deeply"),
        ("x: " + "9" * 30_000, "."),
        ("a" * (MAX_BYTES + 1), "more than 64 KB"),
        ("[" + "1," * 20_000 + "]", f"more than {MAX_VALUES} values"),
    ],
)
def test_it_is_refused_at_once(text, says, tmp_path):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(YamlError, match=says):
        parse_yaml(text)
    with pytest.raises(ConfigError, match=r"bomb\.yaml is not YAML within bounds"):
        load_config(path)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", [BILLION, MERGED])
def test_what_aliases_would_grow_to_takes_no_memory(text):
    tracemalloc.start()
    try:
        with pytest.raises(YamlError):
            parse_yaml(text)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_aliases_that_stay_small_are_as_good_as_what_they_name(tmp_path):
    text = "base: &base {a: 1, b: [x]}\nmore: {<<: *base, c: 2}\nagain: [*base, *base]\n"
    assert parse_yaml(text) == {
        "base": {"a": 1, "b": ["x"]},
        "more": {"a": 1, "b": ["x"], "c": 2},
        "again": [{"a": 1, "b": ["x"]}] * 2,
    }
    assert parse_yaml("") is None


def test_an_override_has_the_same_bounds():
    with pytest.raises(ConfigError, match=r"'classes' is not YAML that can be used.*within"):
        load_config(None, ["classes=&a [*a]"])


def test_a_file_is_read_only_as_far_as_the_bound(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_bytes(b"\xff" * 10)
    with pytest.raises(YamlError, match="not UTF-8"):
        read_yaml(path)
