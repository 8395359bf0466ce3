"""HTTP/1.1 on an own asyncio Protocol, for the data routes."""
