"""Links: a stream between two processes, as two-part messages over ZeroMQ PUSH/PULL."""
