"""A trace sent as real requests: what clients see, of this router or of any other OpenAI-compatible server."""
