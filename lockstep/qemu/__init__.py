"""QEMU's sockets: what `-netdev stream`, `-netdev socket` and the socket chardevs of QEMU's filters speak."""
