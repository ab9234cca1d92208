"""Flows: what makes frames belong together (VLAN stack, addresses, protocol, ports)."""
