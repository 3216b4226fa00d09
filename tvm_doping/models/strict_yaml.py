"""YAML from files that anybody may have written: no pipes, no aliases, no key twice, no numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**20  # bytes: a recipe has a hundred lines


def read_yaml(path: Path) -> Any:
    """The value in the file. yaml.YAMLError, ValueError, RecursionError or OSError for what cannot be one."""
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")  # reading a pipe would wait for ever
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.stat().st_size} bytes, more than {LARGEST}")
    return parse_yaml(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """The value of the text."""
    return yaml.load(text, _Strict)


class _Strict(yaml.SafeLoader):
    """Aliases would make a few lines a tree of billions; of a key that is given twice, YAML takes the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "an alias", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key twice", node.start_mark)
        return found
