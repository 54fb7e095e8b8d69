"""Where real data for tests lies: `../shared/data` next to the project, or `WIT_SHARED_DATA`. Tests skip without it."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
