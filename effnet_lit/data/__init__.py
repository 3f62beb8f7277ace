"""From class folders to batches: index, decode, cache, split, augment."""
