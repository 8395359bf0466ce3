"""`server.processes: N`: data processes on one port, one routing process, and the supervisor that keeps them alive."""
