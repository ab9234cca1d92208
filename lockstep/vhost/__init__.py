"""The back-end's half of vhost-user: a guest's network card whose rings lie in memory that we share.

bytes → `protocol` → `session` (what the front-end set up) → `memory`, `log`, `ring` (the guest's own
data). None of it owns a socket; `lockstep.capture.vhost_user` does.
"""
