"""Faults of the cores that the simulator has found and that are not mended yet: name → what it is.

A name in here is not reported (nor, where it would spoil everything behind it, brought about), so that
the seeds stay green and new faults stand out; `run.py --strict` reports them all. Take a name out
when its fault is mended.
"""

KNOWN: dict[str, str] = {
    "mirror_epoch": "a restarted mirror begins again at epoch 0, and the comparer ignores its commits",
    "unmoved_ack": "the secondary's own ACK leaves with numbers that no rewriter has moved",
    "silent_client": "a server that speaks first stands still if the secondary alone lost the handshake's last ack",
    "probe_answer": "a keep-alive as the client's first segment is not taken for its answer",
    "fin_reason": "a pure ACK behind the FIN that waits in vain is reported as `fin`",
}
