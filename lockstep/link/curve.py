"""CURVE keys: a node's key file, and the allow-list that a ZAP authenticator checks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog
import zmq
from zmq.auth.thread import ThreadAuthenticator

from lockstep.link.zmq import Curve, LinkError, LinkPermissionError
from lockstep.log import RateLimit

log = structlog.get_logger()

DOMAIN = "lockstep"


def generate(path: Path) -> str:
    """Make a new key in a file that only its owner can read; returns the public key (Z85)."""
    public, secret = zmq.curve_keypair()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret + b"\n")
    return public.decode()


def load(path: Path) -> Curve:
    """The key pair of a key file; raises LinkError."""
    try:
        if path.stat().st_mode & 0o077:
            raise LinkError(f"security.secret_key = {path}: others can read it; chmod 600 {path}")
        secret = path.read_bytes().strip()
        return Curve(zmq.curve_public(secret), secret)
    except PermissionError as error:
        way_out = "run as the user who owns it"
        raise LinkPermissionError(f"security.secret_key = {path}: {error.strerror}; {way_out}") from error
    except OSError as error:
        raise LinkError(f"security.secret_key = {path}: {error.strerror}; make one with `lockstep keygen`") from error
    except (zmq.ZMQError, ValueError) as error:
        raise LinkError(f"security.secret_key = {path}: not a key; make one with `lockstep keygen`") from error


class AllowList:
    """Lets peers in whose public key is listed (ZeroMQ RFC 27); runs for as long as it is open."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], peers: tuple[str, ...]) -> None:
        self._allowed = frozenset(peers)
        self.refused = 0
        self._log_allowed = RateLimit(1)
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(DOMAIN, credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the peer with this public key (Z85) may speak."""
        allowed = key.decode() in self._allowed
        if not allowed:
            self.refused += 1
            if self._log_allowed.allows(time.monotonic()):
                log.warning("peer_refused", public_key=key.decode(), way_out="add it to security.peers if it is yours")
        return allowed

    def close(self) -> None:
        """Stop."""
        self._authenticator.stop()
