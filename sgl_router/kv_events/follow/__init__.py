"""Following a stream: frames received, checked, repaired and applied."""
