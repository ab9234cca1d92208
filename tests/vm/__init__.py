"""Real guests: QEMU, Debian's cloud kernel, busybox."""
