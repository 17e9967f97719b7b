"""YAML from a file or a command line, read within bounds: its size, and what its aliases grow to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cxr_pipeline.configs.errors import CxrError

MAX_BYTES = 64 * 1024  # a config that spells out every setting has 4 KB
# With aliases written out. A config that spells out every setting has 300. Nine aliases of nine each, nine deep, are
# 482 bytes, and a billion values.
MAX_VALUES = 10_000


class YamlError(CxrError, ValueError):
    """A text that is not YAML, or is beyond the bounds; the message names which."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, None where it is empty.

    Raises:
        YamlError: see `parse_yaml`. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES // 1024} KB")
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not UTF-8: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, None where it is empty.

    Raises:
        YamlError: it is not YAML, has an alias within itself, or more than `MAX_VALUES` values with aliases written
            out; found before any value is made.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES // 1024} KB")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()  # aliases are references to one node here, and cost nothing
        if node is None:
            return None
        if _values(node, {}) > MAX_VALUES:
            raise YamlError(f"it has more than {MAX_VALUES} values once its aliases are written out")
        return loader.construct_document(node)
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise error if isinstance(error, YamlError) else YamlError(str(error)) from error
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node holds with aliases written out, itself included; a node that many name is counted once."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    key = id(node)
    if key in known:
        count = known[key]
        if count is None:
            raise YamlError("an alias stands within what it names")
        return count
    known[key] = None
    if isinstance(node, yaml.MappingNode):
        total = 1 + sum(_values(key, known) + _values(value, known) for key, value in node.value)
    else:
        total = 1 + sum(_values(item, known) for item in node.value)
    known[key] = total
    return total
