"""What operators ask a router: whether it is well, whom it knows, why it decided as it did. One file per route."""
