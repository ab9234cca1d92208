"""Divergence reports: what a divergence says, for a person, for a program and for Wireshark.

core ── Event("divergence") ──▶ shell ──▶ recorder ──▶ TIME-FLOW.json, TIME-FLOW.pcapng
                                                           │
                        comparer's status ──▶ report ──▶ render (words, decode) ──▶ `lockstep explain`
"""

#: Fields of the event that hold packets: they go to the recorder, and to no log line and no status.
PRIMARY_FRAMES, SECONDARY_FRAMES = "primary_frames", "secondary_frames"
FRAMES = (PRIMARY_FRAMES, SECONDARY_FRAMES)
#: Bytes kept of a packet.
SNAP = 2048
