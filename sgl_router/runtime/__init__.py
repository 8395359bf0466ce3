"""The life of the router's processes: put together, supervised, drained, stopped."""
