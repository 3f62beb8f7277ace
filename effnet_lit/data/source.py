"""One road to the images, whatever they are given as. Standard library only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from effnet_lit.config import UserError
from effnet_lit.data.folder import Index, read_folder
from effnet_lit.data.manifest import read_manifest
from effnet_lit.data.shards import is_sharded, read_shards


def read_images(data_dir: Path, manifest: Path | None, group: str | None) -> Index:
    """The index of a manifest, of shards or of class folders, with groups where they are asked for.

    ``group`` is a column of the manifest, or else a regular expression that is searched in each path; its first
    bracketed part, or all that matches, is the group.

    Raises:
        UserError: the images cannot be read as what they are given as, or a path shows no group.
    """
    if manifest:
        index = read_manifest(manifest, data_dir, group)
    elif is_sharded(data_dir):
        index = read_shards(data_dir)
    else:
        index = read_folder(data_dir)
    if group is None or (manifest and index.groups):
        return index
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UserError(
            f"data.group={group} is no regular expression ({error}); try data.group='patient\\d+'."
        ) from error
    other = f", or a column of {manifest}" if manifest else ""
    return replace(index, groups=tuple(group_of(path, pattern, other) for path in index.paths))


def group_of(path: str, pattern: re.Pattern[str], other: str) -> str | None:
    """What the pattern finds in a path; None where the bracketed part is an option that this path does not show."""
    found = pattern.search(path)
    group = (found[1] if pattern.groups else found[0]) if found else ""
    if group == "":
        raise UserError(
            f"data.group={pattern.pattern} finds nothing in {path}; give a pattern that fits every path{other}."
        )
    return group
