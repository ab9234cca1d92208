"""What a flow has to say at its end: the first place at which the two files differ, and why."""

from __future__ import annotations

from dataclasses import dataclass

#: Reasons, as the comparer gives them. UNMATCHED: one file says something and the other says nothing there.
DATA, FIN, SYN, UNMATCHED, LIMIT = "data", "fin", "syn", "unmatched", "limit"


@dataclass(frozen=True, slots=True)
class Finding:
    """offset: of the first differing byte in its direction's stream. frames: those that hold it; 0 for none."""

    reason: str
    offset: int
    primary_frame: int = 0
    secondary_frame: int = 0
