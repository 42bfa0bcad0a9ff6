from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["api.app", "api.__main__", "service.store", "service.client"])
def test_the_control_plane_loads_no_training_library(module: str) -> None:
    """So that it starts at once, and installs without them."""
    code = f"import {module}, sys; print(sorted({{'torch', 'deepspeed', 'timm', 'numpy', 'cv2'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert loaded.strip() == "[]"
