"""One workspace of generated scenes for all tests."""

from pathlib import Path

import pytest
import torch
from support.scene_shards import write_scene_shards

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with 200 scenes in 5 unequal shards."""
    workspace = tmp_path_factory.mktemp("scenes")
    write_scene_shards(workspace / "shards", (60, 13, 47, 50, 30))
    return workspace
