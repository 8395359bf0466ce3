"""Deciding in another process: messages, and both ends of the socket."""
