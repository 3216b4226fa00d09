"""The bundles of tests/bundle, for the command line."""

from __future__ import annotations

from tests.bundle.conftest import bundle, library, saved

__all__ = ["bundle", "library", "saved"]
