from __future__ import annotations

from pathlib import Path

import pytest
from tests.audit.fabricated import Fabricate, fabricate_run


@pytest.fixture
def fabricate(tmp_path: Path) -> Fabricate:
    """Makes a run folder below the test's own folder; see `fabricate_run`."""
    return lambda name="run", **options: fabricate_run(tmp_path / name, **options)
