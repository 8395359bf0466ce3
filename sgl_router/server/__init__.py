"""The HTTP surface and the process around it."""
