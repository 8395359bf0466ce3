"""The index as bytes, so that it survives a restart."""
