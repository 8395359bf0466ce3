"""The laboratory: a mock worker, a simulator and a trace player. The router needs none of it to run."""
