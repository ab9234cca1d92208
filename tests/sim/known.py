"""Faults of the cores that the simulator has found and that are not mended yet: name → what it is.

A name in here is not reported (nor, where it would spoil everything behind it, brought about), so that
the seeds stay green and new faults stand out; `run.py --strict` reports them all. Take a name out
when its fault is mended.
"""

KNOWN: dict[str, str] = {
    "silent_client": "the secondary alone lost a quiet client's last ack (or handshake), and nobody makes it repeat it",
    "lost_commit": "a commit that dies with the primary node never reaches the rewriter: stale offsets at the failover",
    "lowered_fin": "a FIN leaves with a lowered ack, and the primary closes before the client's last bytes are acknowledged",
    "stale_reset": "a RST is proven by an older one with the same seq (0, in answers to SYNs)",
    "half_opened": "a connection that the guest opens is reset if the failover comes within its handshake",
}
