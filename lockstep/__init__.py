"""Lockstep: a COLO network proxy made of processes joined by ZeroMQ."""

__version__ = "0.1.0"
