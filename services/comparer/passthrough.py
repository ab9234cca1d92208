"""Rules for flows that leave unchecked: the first that matches decides."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from lockstep.config import Passthrough
from lockstep.wire import frame

_NUMBERS = {
    "icmp": frame.IPPROTO_ICMP,
    "tcp": frame.IPPROTO_TCP,
    "udp": frame.IPPROTO_UDP,
    "icmpv6": frame.IPPROTO_ICMPV6,
}


class Rules:
    """`[[comparer.passthrough]]`, ready to be asked; `counts` is how many flows each rule has decided."""

    def __init__(self, rules: Sequence[Passthrough]) -> None:
        self._rules = [
            (
                rule,
                _NUMBERS.get(rule.protocol, rule.protocol) if isinstance(rule.protocol, str) else rule.protocol,
                ipaddress.ip_network(rule.network) if rule.network else None,
                ipaddress.ip_network(rule.guest) if rule.guest else None,
            )
            for rule in rules
        ]
        self.counts = [0] * len(rules)

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return bool(self._rules)

    def pass_unchecked(self, key: bytes) -> bool:
        """Whether the flow of this key (`lockstep.flow.key`) leaves unchecked; no rule means no."""
        if not self._rules or not key[1]:
            return False
        at = 3 + 2 * key[0]
        size = 4 if key[1] == 4 else 16
        guest, peer = (ipaddress.ip_address(key[at + size * i : at + size * (i + 1)]) for i in range(2))
        ports = key[at + 2 * size :]
        pair = (int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")) if len(ports) == 4 else ()
        for index, (rule, protocol, network, guests) in enumerate(self._rules):
            if protocol is not None and protocol != key[2]:
                continue
            if rule.port is not None and rule.port not in pair:
                continue
            if (network is not None and peer not in network) or (guests is not None and guest not in guests):
                continue
            self.counts[index] += 1
            return rule.action == "pass"
        return False
