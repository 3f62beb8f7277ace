"""What class names tell of images. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence


def mirror_changes_label(class_names: Sequence[str]) -> bool:
    """Whether names are single digits or letters, or speak of left and right."""
    single = sum(len(name) == 1 for name in class_names) >= len(class_names) / 2
    return single or any(re.search(r"(?i)(^|[^a-z])(left|right)([^a-z]|$)", name) for name in class_names)
