"""Real guests: QEMU, Debian's cloud kernel, busybox. `tests/vm` tries them, `python -m bench guest` measures them."""
