"""What clients ask a router. One file per endpoint."""
