"""A node's configuration: one TOML file, validated as a whole.

`load` reads the file, lays `LOCKSTEP_…` environment variables over it and either returns a `Node`
or raises `ConfigError` with every fault at once. The models below are the only place where a
setting, its default and its meaning stand; `lockstep check-config --explain` prints them.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from lockstep.qemu.address import Address
from lockstep.streams import DIGESTS, SECONDARY, STREAMS, share, side_of, stream_and_share
from lockstep.wiring import LOCAL, SERVICES

Stream = Literal["ingress", "to_guest", "from_guest", "primary", "secondary", "released"]
Service = Literal["mirror", "redirector", "rewriter", "comparer"]
Frontend = Literal["tap", "packet", "qemu", "vhost-user", "pcap", "memory"]
#: Bytes of virtio-net header that go with each frame over a socket of QEMU's; 0: vnet_hdr is off there.
VnetHeader = Literal[0, 10, 12]
OnDivergence = Literal["hold", "unprotect", "checkpoint"]

#: What an endpoint begins with whose other end is a filter of QEMU's.
QEMU = "qemu+"

ENV_PREFIX = "LOCKSTEP_"
#: Variables of the project that are not settings of a node.
ENV_RESERVED = frozenset(
    {
        "LOCKSTEP_CONFIG",
        "LOCKSTEP_REQUIRE",
        "LOCKSTEP_CORPUS",
        "LOCKSTEP_COMPILE",
        "LOCKSTEP_BUILD",
        "LOCKSTEP_FLOOD",
        "LOCKSTEP_FUZZ",
        "LOCKSTEP_SANITIZE",
        "LOCKSTEP_VM_MIB",
        "LOCKSTEP_VM_QEMU",
    }
)

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+|\*):(?P<port>[0-9]{1,5})")
#: 32 bytes in Z85 (ZeroMQ RFC 32).
_Z85_KEY = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
#: IFNAMSIZ, without its closing zero.
_LONGEST_DEVICE = 15
#: sockaddr_un.sun_path, without its closing zero.
_LONGEST_IPC_PATH = 107


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: which setting, the value it has, why, and what to do about it."""

    setting: str
    value: str
    why: str
    way_out: str

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        return f"{self.setting}{value}: {self.why}. {self.way_out}"


class ConfigError(Exception):
    """The configuration can't be used; `faults` holds everything that is wrong with it."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        self.source = source
        self.faults = faults
        super().__init__("\n".join([f"{source}: {len(faults)} fault(s)", *(f"  {fault}" for fault in faults)]))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def parse_endpoint(text: str) -> tuple[str, str]:
    """`(transport, address)` of a ZeroMQ endpoint; raises ValueError with what is wrong."""
    if text.startswith("ipc://"):
        path = text.removeprefix("ipc://")
        if not path.startswith("/"):
            raise ValueError("an ipc endpoint needs an absolute path, as in ipc:///run/lockstep/primary")
        if len(path.encode()) > _LONGEST_IPC_PATH:
            raise ValueError(f"the path of an ipc endpoint may have {_LONGEST_IPC_PATH} bytes at most")
        return "ipc", path
    found = _TCP.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 65536:
        raise ValueError("an endpoint is tcp://HOST:PORT or ipc:///ABSOLUTE/PATH")
    return "tcp", text.removeprefix("tcp://")


def reachable(endpoint: str) -> str:
    """Where to connect to reach what is bound at `endpoint` on this machine: a wildcard is the loopback."""
    for wildcard, loopback in (("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")):
        if endpoint.startswith(f"tcp://{wildcard}:"):
            return endpoint.replace(wildcard, loopback, 1)
    return endpoint


def _check_key(text: str) -> None:
    if not _Z85_KEY.fullmatch(text):
        raise ValueError("a public key has 40 characters (Z85), as `lockstep keygen` prints it")


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint, ZeroMQ's or QEMU's, can be reached from this machine alone."""
    if endpoint.startswith((QEMU, "unix://")):
        socket = Address.parse(endpoint.removeprefix(QEMU))
        if socket.path is not None:
            return True
        host = socket.host
    else:
        transport, address = parse_endpoint(endpoint)
        if transport == "ipc":
            return True
        host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Link(_Model):
    """One stream's way between two processes."""

    endpoint: str = Field(
        description="tcp://HOST:PORT or ipc:///PATH; its consumer binds it, its producer connects. "
        "qemu+unix:///PATH or qemu+tcp://HOST:PORT: the socket chardev of one of QEMU's filters"
    )
    hwm: Annotated[int, Field(ge=1, le=10_000)] = Field(8, description="messages (of up to 1 MiB) queued at each end")
    key: str | None = Field(
        None, description="public key of the node that binds it; default: the first of security.peers"
    )
    server: bool | None = Field(
        None, description="qemu+…: this end listens; default: the consumer does, as on every link"
    )
    vnet_hdr: VnetHeader = Field(
        0, description="qemu+…: bytes of virtio-net header, with vnet_hdr_support=on there; 0: off"
    )

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if value.startswith(QEMU):
            Address.parse(value.removeprefix(QEMU))
        else:
            parse_endpoint(value)
        return value

    def qemu(self) -> Address | None:
        """Where the chardev of QEMU's is, if that is at the other end."""
        return Address.parse(self.endpoint.removeprefix(QEMU)) if self.endpoint.startswith(QEMU) else None

    @field_validator("key")
    @classmethod
    def _key(cls, value: str | None) -> str | None:
        if value is not None:
            _check_key(value)
        return value


_Rate = Annotated[float, Field(ge=0, le=1)]


class Faults(_Model):
    """A bad wire on purpose, for tests."""

    seed: int = Field(0, description="the same seed and the same frames give the same faults")
    loss: _Rate = Field(0.0, description="share of the frames that are lost, each way")
    duplicate: _Rate = Field(0.0, description="share that comes twice")
    reorder: _Rate = Field(0.0, description="share that comes 2 ms late, after others")
    corrupt: _Rate = Field(0.0, description="share with a wrong bit behind the Ethernet header")
    delay: Annotated[float, Field(ge=0, le=10)] = Field(0.0, description="seconds by which every frame comes late")


class Port(_Model):
    """A capture frontend's two-way end. Each frontend uses the settings it knows."""

    capture: Frontend | None = Field(None, description="frontend of this port alone; default: the node's `capture`")
    device: str | None = Field(
        None, description="tap, packet: name of the interface; a TAP is made if it doesn't exist"
    )
    netns: str | None = Field(
        None, description="tap, packet: network namespace of the interface: a name, a path or a pid"
    )
    mtu: Annotated[int, Field(ge=576, le=65535)] | None = Field(None, description="tap, packet: set on the interface")
    multi_queue: bool = Field(
        False, description="tap: the device has several queues, and this port is one; each flow comes to one of them"
    )
    persistent: bool = Field(False, description="tap: the device outlives the service, as with `ip tuntap add`")
    fanout: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="packet: a number shared by all that read this interface; each flow comes to one of them"
    )
    address: str | None = Field(None, description="qemu, vhost-user: unix:///PATH; qemu: or tcp://HOST:PORT")
    server: bool = Field(False, description="qemu, vhost-user: listen at `address`, instead of connecting to it")
    vnet_hdr: VnetHeader = Field(
        0, description="qemu: bytes of virtio-net header, where a filter has vnet_hdr_support=on; 0: off"
    )
    queues: Annotated[int, Field(ge=1, le=16)] = Field(1, description="vhost-user: most queue pairs of the guest")
    read: Path | None = Field(None, description="pcap: file whose frames come in (pcap or pcapng)")
    write: Path | None = Field(None, description="pcap: file that takes the frames that go out (.pcap or .pcapng)")
    trace: Path | None = Field(None, description="pcapng file of what passes the port, whatever the frontend")
    trace_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        64 << 20, description="bytes of that file and of the one before it (.old)"
    )
    faults: Faults = Field(default_factory=Faults, description="loss, delay and the like, whatever the frontend")

    @field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            Address.parse(value)
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[^\s/:%]+", value) or len(value.encode()) > _LONGEST_DEVICE):
            raise ValueError(
                f"the name of an interface has 1 to {_LONGEST_DEVICE} bytes, without space, slash, colon or %"
            )
        return value


class Mirror(_Model):
    """The mirror's ports, and its limit."""

    network: Port = Field(default_factory=Port, description="towards the clients")
    guest: Port = Field(default_factory=Port, description="towards the primary guest")
    max_syns: Annotated[int, Field(ge=0, le=100_000_000)] = Field(
        4000, description="SYNs of clients that pass in a second; more are lost in front of both guests; 0: no limit"
    )


class Redirector(_Model):
    """The redirector's port and its part in a failover."""

    uplink: Port = Field(default_factory=Port, description="towards the clients, silent until failover")
    secondary: Literal["frames", "digest"] = Field(
        "frames", description="digest: instead of TCP's payload a keyed hash goes to the comparer, set likewise there"
    )
    hash: Literal["blake2b", "xxh3"] = Field(
        "blake2b", description="of digest mode; xxh3: a tenth of the CPU time, for guests that don't attack themselves"
    )
    announcements: Annotated[int, Field(ge=1, le=20)] = Field(5, description="how often the address is announced")


class Rewriter(_Model):
    """The rewriter's port and limits."""

    guest: Port = Field(default_factory=Port, description="towards the secondary guest")
    max_flows: Annotated[int, Field(ge=16, le=4_000_000)] = Field(
        1_000_000, description="open connections whose offsets are kept; one more passes untouched, and so diverges"
    )
    max_half_open: Annotated[int, Field(ge=16, le=4_000_000)] = Field(
        16_384, description="connections of which only the guest's SYN was seen; the oldest makes way"
    )
    idle_timeout: Annotated[float, Field(ge=1)] = Field(
        86_400.0, description="seconds until a silent connection is forgotten"
    )


class Passthrough(_Model):
    """Flows that leave unchecked. What is not given matches everything; the first rule that matches decides."""

    protocol: Literal["tcp", "udp", "icmp", "icmpv6"] | Annotated[int, Field(ge=0, le=255)] | None = Field(
        None, description="name, or number as assigned by IANA"
    )
    port: Annotated[int, Field(ge=0, le=65535)] | None = Field(None, description="either side's port")
    network: str | None = Field(None, description="addresses of the other side, as in 192.0.2.0/24")
    guest: str | None = Field(None, description="addresses of the guest")
    action: Literal["pass", "compare"] = Field("pass", description="compare: an exception from a later rule")

    @field_validator("network", "guest")
    @classmethod
    def _network(cls, value: str | None) -> str | None:
        if value is not None:
            ipaddress.ip_network(value)
        return value


class Comparer(_Model):
    """How the comparer compares, and what follows a divergence."""

    compare_timeout: Annotated[float, Field(ge=0.001, le=3600)] = Field(
        3.0, description="seconds a primary frame may wait for the secondary's"
    )
    on_divergence: OnDivergence = Field(
        "checkpoint", description="checkpoint: ask for one and hold; unprotect: release that flow unchecked; hold"
    )
    passthrough: tuple[Passthrough, ...] = Field(
        (), description="rules for flows that leave unchecked; first match wins"
    )
    mptcp: Literal["strip", "unprotect"] = Field(
        "strip",
        description="strip: MPTCP is taken out of the guest's SYNs; unprotect: such connections leave unchecked",
    )
    max_flows: Annotated[int, Field(ge=16, le=4_000_000)] = Field(1_000_000, description="flows followed at once")
    max_half_open: Annotated[int, Field(ge=16, le=4_000_000)] = Field(
        16_384, description="flows of which only a SYN was seen"
    )
    max_flow_bytes: Annotated[int, Field(ge=131_072)] = Field(16 << 20, description="bytes kept for one flow")
    max_bytes: Annotated[int, Field(ge=1 << 20)] = Field(512 << 20, description="bytes kept for all flows together")
    idle_timeout: Annotated[float, Field(ge=1)] = Field(
        86_400.0, description="seconds until a silent flow is forgotten"
    )
    notify: str | None = Field(
        None,
        description="unix:///PATH or tcp://HOST:PORT: where checkpoints are spoken of as on colo-compare's notify_dev",
    )
    notify_server: bool = Field(False, description="listen at `notify`, instead of connecting to it")
    secondary: Literal["frames", "digest"] = Field(
        "frames",
        description="digest: hashes come in place of TCP's payload (`redirector.secondary`), of all guests alike",
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="processes that compare, each its share of the flows; limits are shared out; read at start"
    )
    capture_dir: Path | None = Field(
        None, description="folder of its own for each divergence's report (.json) and packets (.pcapng); read at start"
    )
    capture_files: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        100, description="files kept there, two for each divergence; the oldest go first"
    )
    capture_bytes: Annotated[int, Field(ge=1 << 20)] = Field(64 << 20, description="bytes kept there")

    @field_validator("notify")
    @classmethod
    def _notify(cls, value: str | None) -> str | None:
        if value is not None:
            Address.parse(value)
        return value

    @property
    def said(self) -> str:
        """The stream that tells what the secondary says."""
        return DIGESTS if self.secondary == "digest" else SECONDARY


class Security(_Model):
    """CURVE keys for links that leave this machine."""

    insecure: bool = Field(False, description="allow links without encryption to leave the loopback")
    secret_key: Path | None = Field(None, description="this node's key file, made by `lockstep keygen`")
    peers: tuple[str, ...] = Field((), description="public keys of the other nodes; nobody else is let in")

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            _check_key(key)
        return value


class Log(_Model):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")


class Guest(_Model):
    """The protected guest. What is not given is learned from its frames."""

    name: str | None = Field(None, description="stamped on every message; messages for another guest are refused")
    mac: str | None = Field(None, description="announced at failover")
    addresses: tuple[str, ...] = Field((), description="IPv4 and IPv6 addresses announced at failover")

    @field_validator("mac")
    @classmethod
    def _mac(cls, value: str | None) -> str | None:
        if value is not None and not _MAC.fullmatch(value):
            raise ValueError("a MAC address is written 52:54:00:12:34:56")
        return value

    @field_validator("addresses")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            ipaddress.ip_address(address)
        return value

    @model_validator(mode="after")
    def _both(self) -> Guest:
        if self.addresses and not self.mac:
            raise ValueError("addresses can't be announced without the guest's `mac`")
        return self


class ComparedGuest(_Model):
    """One of the guests of a comparer that serves many."""

    name: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        description="as stamped on its messages; those of a guest that is not listed are refused"
    )
    released: Link = Field(description="its mirror's link: an endpoint, or a table with `endpoint`, `hwm` and `key`")
    comparer: Comparer = Field(
        default_factory=Comparer, description="settings of [comparer] that differ for this guest"
    )

    @field_validator("released", mode="before")
    @classmethod
    def _short_link(cls, value: Any) -> Any:
        return {"endpoint": value} if isinstance(value, str) else value

    @field_validator("comparer")
    @classmethod
    def _for_all(cls, value: Comparer) -> Comparer:
        for_all = {"workers", "secondary", "capture_dir", "capture_files", "capture_bytes"}
        shared = sorted(value.model_fields_set & for_all)
        if shared:
            raise ValueError(f"{shared[0]} is set for all guests together, under [comparer]")
        return value


class Node(_Model):
    """One node: which services it runs, where their ports and links are."""

    node: str = Field("lockstep", description="name of this node, in its logs")
    services: tuple[Service, ...] = Field((), description="what `lockstep up` runs here")
    fuse: tuple[tuple[Service, ...], ...] = Field(
        (), description='services that share one process, joined in memory: ["redirector", "rewriter"], or such lists'
    )
    cpus: dict[Service, Annotated[int, Field(ge=0, le=1023)]] = Field(
        default_factory=dict,
        description="service → the one CPU it runs on, with all its threads; neighbours on different ones are fastest",
    )
    run_dir: Path = Field(Path("/run/lockstep"), description="control sockets and ipc links")
    capture: Frontend = Field("tap", description="frontend of every port that doesn't name its own")
    ipc: Literal["libzmq", "direct"] = Field(
        "libzmq",
        description="who carries the links on ipc: ZeroMQ's threads, or the service itself (direct: faster for small "
        "frames; speaks ZMTP as ZeroMQ does, so the two ends may differ)",
    )
    links: dict[Stream, Link] = Field(
        default_factory=dict, description="stream → endpoint, or a table with `endpoint` and `hwm`"
    )
    guest: Guest = Field(default_factory=Guest)
    guests: tuple[ComparedGuest, ...] = Field(
        (),
        description="guests of a comparer that serves many; `links.primary` and `links.secondary` are theirs together",
    )
    mirror: Mirror = Field(default_factory=Mirror)
    redirector: Redirector = Field(default_factory=Redirector)
    rewriter: Rewriter = Field(default_factory=Rewriter)
    comparer: Comparer = Field(default_factory=Comparer)
    security: Security = Field(default_factory=Security)
    log: Log = Field(default_factory=Log)
    events: tuple[str, ...] = Field(
        (),
        description="event endpoints on other nodes: the comparer's for the rewriter, and the other way round",
    )
    control: dict[Service, str] = Field(
        default_factory=dict, description="service → its control endpoint; default: ipc in `run_dir`"
    )
    publish: dict[Service, str] = Field(
        default_factory=dict, description="service → its event endpoint; default: ipc in `run_dir`"
    )

    @field_validator("links", mode="before")
    @classmethod
    def _short_links(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {"endpoint": link} if isinstance(link, str) else link for name, link in value.items()}
        return value

    @field_validator("fuse", mode="before")
    @classmethod
    def _one_group(cls, value: Any) -> Any:
        one = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
        return (value,) if one else value

    @field_validator("fuse")
    @classmethod
    def _each_once(cls, value: tuple[tuple[Service, ...], ...]) -> tuple[tuple[Service, ...], ...]:
        named = [service for group in value for service in group]
        twice = sorted({service for service in named if named.count(service) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice, and runs in one process alone")
        return value

    @field_validator("control", "publish", "events")
    @classmethod
    def _endpoints(cls, value: Any) -> Any:
        for endpoint in value.values() if isinstance(value, dict) else value:
            parse_endpoint(endpoint)
        return value

    def of_guest(self, name: str) -> Node:
        """This node as the comparer of one of its `guests` sees it."""
        guest = next(guest for guest in self.guests if guest.name == name)
        own = {setting: getattr(guest.comparer, setting) for setting in guest.comparer.model_fields_set}
        return self.model_copy(
            update={
                "guest": Guest(name=name),
                "guests": (),
                "links": {**self.links, "released": guest.released},
                "comparer": self.comparer.model_copy(update=own),
            }
        )

    def workers(self) -> tuple[str, ...]:
        """The processes of a comparer with `workers`, by name; none for one that is a single process."""
        count = self.comparer.workers
        return (*(str(number) for number in range(count)), "splitter") if count > 1 else ()

    def of_worker(self, name: str) -> Node:
        """This node as one process of a comparer with `workers` sees it.

        name: a worker's number, or `splitter`. A worker has its share of the limits, and links to the splitter.
        """
        comparer, folder = self.comparer, f"ipc://{self.run_dir}/comparer.{name}"
        links: dict[Any, Link] = dict(self.links)
        if name != "splitter":
            links |= {stream: self.link(f"{stream}@{name}") for stream in ("primary", "secondary", "released")}
            limits = ("max_flows", "max_half_open", "max_bytes")
            shares = {limit: -(-getattr(comparer, limit) // comparer.workers) for limit in limits}
            comparer = comparer.model_copy(update=shares)
        return self.model_copy(
            update={
                "links": links,
                "comparer": comparer,
                "control": {**self.control, "comparer": f"{folder}.control"},
                "publish": {**self.publish, "comparer": f"{folder}.events"},
            }
        )

    def link(self, stream: str) -> Link:
        """The link of a stream, or of a share of one; one that was not configured is ipc in `run_dir`."""
        plain, name = stream_and_share(stream)
        plain = side_of(plain)
        stream = plain if name is None else share(plain, name)
        configured = self.links.get(cast(Stream, stream))
        if configured is None and plain == "released":
            configured = next((guest.released for guest in self.guests if guest.name == name), None)
        return configured or Link.model_validate({"endpoint": f"ipc://{self.run_dir}/{stream}"})

    def cpu_of(self, services: Sequence[Service]) -> int | None:
        """The CPU for a process of these services, if one is named."""
        return next((self.cpus[service] for service in services if service in self.cpus), None)

    def with_fused(self, services: Sequence[Service]) -> tuple[Service, ...]:
        """These services and all that `fuse` puts into one process with them."""
        groups = [next((group for group in self.fuse if service in group), (service,)) for service in services]
        return tuple(dict.fromkeys(service for group in groups for service in group))

    def processes(self) -> list[tuple[Service, ...]]:
        """The services of this node, grouped by the process that runs them."""
        return list(dict.fromkeys(self.with_fused((service,)) for service in self.services))

    def control_endpoint(self, service: Service) -> str:
        """Where a service takes control requests."""
        return self.control.get(service) or f"ipc://{self.run_dir}/{service}.control"

    def events_endpoint(self, service: Service) -> str:
        """Where a service publishes its events."""
        return self.publish.get(service) or f"ipc://{self.run_dir}/{service}.events"

    def port(self, service: str, name: str) -> Port:
        """The settings of one port."""
        port: Port = getattr(getattr(self, service), name)
        return port

    def frontend(self, service: str, name: str) -> Frontend:
        """Which capture frontend a port uses."""
        return self.port(service, name).capture or self.capture


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str] | None = None,
    services: tuple[Service, ...] | None = None,
    capture: str | None = None,
) -> Node:
    """Read and validate a node's configuration.

    services: what will be run (default: the node's own list); what they need must be configured, and
    what is fused with them needs.
    capture: a frontend that overrides every port's.
    Raises ConfigError with all faults.
    """
    source = str(path) if path else "the environment"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        way_out = "Name an existing TOML file with -c; deploy/ holds an example for each node."
        raise ConfigError(source, [Fault("-c", str(path), error.strerror or "can't be read", way_out)]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(source, [Fault("(file)", "", f"not TOML: {error}", "Correct that place.")]) from error
    faults = list(_overlay(raw, os.environ if environ is None else environ))
    if capture is not None:
        raw["capture"] = capture
        for service, wiring in SERVICES.items():
            for name in wiring.ports:
                table = raw.get(service)
                if isinstance(table, dict) and isinstance(table.get(name), dict):
                    table[name].pop("capture", None)
    # Where settings are wrong, say so, and without them see what else would be.
    node, found = _validated(raw)
    while node is None and (new := [fault for fault in found if fault not in faults]):
        faults += new
        node, found = _validated(raw)
    if node is not None:
        named = {fault.setting for fault in faults}
        joint = _joint_faults(node, node.with_fused(services if services is not None else node.services))
        faults += [fault for fault in joint if fault.setting not in named]
    if faults or node is None:
        raise ConfigError(source, list(dict.fromkeys(faults)))
    return node


def _validated(raw: dict[str, Any]) -> tuple[Node | None, list[Fault]]:
    """The node, or what is wrong with single settings; those are taken out of `raw`."""
    try:
        return Node.model_validate(raw), []
    except ValidationError as error:
        entries: list[dict[str, Any]] = [dict(entry) for entry in error.errors()]
    for entry in entries:
        place: Any = raw
        *tables, last = [part for part in entry["loc"] if part != "[key]"] or [""]
        for table in tables:
            inner = place.get(table) if isinstance(place, dict) else None
            if not isinstance(inner, dict):
                last = table
                break
            place = inner
        else:
            if entry["type"] == "missing" and tables:  # the table that lacks it goes
                _take_out(raw, tables)
                continue
        if isinstance(place, dict):
            place.pop(last, None)
    return None, [_fault(entry) for entry in entries]


def _take_out(raw: dict[str, Any], place: list[Any]) -> None:
    table: Any = raw
    for part in place[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(place[-1], None)


def _overlay(raw: dict[str, Any], environ: Mapping[str, str]) -> Iterator[Fault]:
    """Lay `LOCKSTEP_COMPARER__COMPARE_TIMEOUT=1` over `[comparer] compare_timeout`."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_RESERVED:
            continue
        *tables, name = variable.removeprefix(ENV_PREFIX).lower().split("__")
        place = raw
        for table in tables:
            inner = place.setdefault(table, {})
            if not isinstance(inner, dict):
                yield Fault(variable, text, f"`{table}` is no table", "Name a setting of a table, as TABLE__SETTING.")
                break
            place = inner
        else:
            place[name] = _env_value(text)


def _env_value(text: str) -> Any:
    """Lists and tables are written as JSON; everything else is text that pydantic converts."""
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


#: What to do about each kind of fault that pydantic finds.
_WAYS_OUT = {
    "missing": "Add it.",
    "bool_parsing": "Write true or false.",
    "int_parsing": "Write a whole number.",
    "int_type": "Write a whole number.",
    "float_parsing": "Write a number.",
    "float_type": "Write a number.",
    "string_type": "Write it in quotes.",
    "tuple_type": 'Write a list, as in ["a", "b"].',
    "dict_type": "Write a table.",
    "model_type": "Write a table.",
}


def _fault(entry: dict[str, Any]) -> Fault:
    place = [str(part) for part in entry["loc"] if part != "[key]"]
    setting = ".".join(place) or "(file)"
    kind, context = entry["type"], entry.get("ctx", {})
    value = entry.get("input")
    shown = "" if isinstance(value, dict) else json.dumps(value, default=str)
    if kind == "extra_forbidden":
        known = _settings_at(place[:-1])
        close = difflib.get_close_matches(place[-1], known, 1)
        why = "there is no such setting"
        way_out = f"Did you mean `{close[0]}`?" if close else f"Remove it; here are: {', '.join(known)}."
        return Fault(setting, shown, why, way_out)
    if kind == "literal_error":
        if entry["loc"][-1:] == ("[key]",):
            return Fault(setting, "", "there is no such name", f"Names are {context['expected']}.")
        return Fault(setting, shown, "not one of its values", f"Choose {context['expected']}.")
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context.get("ge", context.get("le"))
        edge = "least" if "ge" in context else "most"
        return Fault(setting, shown, f"out of range: {bound} is the {edge}", f"Choose {bound} at {edge}.")
    why = str(entry["msg"]).removeprefix("Value error, ").rstrip(".")
    field = _field_at(place)
    meaning = f"It is: {field.description}." if field is not None and field.description else "Correct it."
    return Fault(setting, shown, why, _WAYS_OUT.get(kind, meaning))


def _model_at(place: list[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = Node
    for part in place:
        if model is Node and part == "links":
            continue
        if model is Node and part == "guests":
            model = ComparedGuest
            continue
        if model is ComparedGuest and part.isdigit():
            continue
        if part in STREAMS and place[0] == "links":
            model = Link
            continue
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _settings_at(place: list[str]) -> list[str]:
    model = _model_at(place)
    return sorted(model.model_fields) if model else []


def _field_at(place: list[str]) -> FieldInfo | None:
    model = _model_at(place[:-1]) if place else None
    return model.model_fields.get(place[-1]) if model else None


def _joint_faults(node: Node, services: tuple[Service, ...]) -> list[Fault]:
    """Faults that only show where several settings meet."""
    faults = []
    for service in services:
        for name in SERVICES[service].ports:
            faults += _port_faults(node, service, name)
    faults += _guests_faults(node)
    faults += _workers_faults(node)
    strangers = [name for group in node.fuse for name in group if node.services and name not in node.services]
    if strangers:
        way_out = "Add it there, or take it out here."
        faults.append(
            Fault("fuse", json.dumps(node.fuse), f"{strangers[0]} is not among this node's `services`", way_out)
        )
    faults += _cpus_faults(node)
    faults += _run_dir_faults(node)
    if faults and faults[-1].setting == "run_dir":
        return faults
    for setting, address in _qemu_addresses(node, services):
        if not is_loopback(address) and not node.security.insecure:
            way_out = "Use a unix socket or a tunnel, or set security.insecure = true."
            faults.append(
                Fault(setting, address, "leaves this machine, and QEMU's sockets know no encryption", way_out)
            )
    faults += _notify_faults(node, services)
    for setting, endpoint in _endpoints(node, services):
        if not is_loopback(endpoint) and not node.security.insecure and not node.security.secret_key:
            way_out = "Set security.secret_key and security.peers (`lockstep keygen`), or security.insecure = true."
            faults.append(Fault(setting, endpoint, "leaves this machine without encryption", way_out))
    if node.security.secret_key and not node.security.peers:
        way_out = "Add the public keys of the other nodes."
        faults.append(Fault("security.peers", "[]", "with a secret key and no peers nobody could connect", way_out))
    return faults


def _guests_faults(node: Node) -> Iterator[Fault]:
    names = [guest.name for guest in node.guests]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        yield Fault("guests", twice, "named twice", "Give each guest a name of its own.")
    ends = [guest.released.endpoint for guest in node.guests]
    shared = next((end for end in ends if ends.count(end) > 1), None)
    if shared is not None:
        yield Fault("guests", shared, "`released` of two guests", "Each guest's mirror binds an endpoint of its own.")
    if node.guests and len(node.with_fused(("comparer",))) > 1:
        way_out = "Take the comparer out of `fuse`: its links lead to many nodes."
        yield Fault("fuse", json.dumps(node.fuse), "a comparer of many `guests` has a process of its own", way_out)


def _workers_faults(node: Node) -> Iterator[Fault]:
    workers = str(node.comparer.workers)
    if workers != "1" and len(node.with_fused(("comparer",))) > 1:
        yield Fault("comparer.workers", workers, "a fused comparer is one process", "Take the comparer out of `fuse`.")
    if workers != "1" and (
        node.comparer.notify or any(node.link(stream).qemu() for stream in ("primary", "secondary", "released"))
    ):
        way_out = "Leave it at 1 where QEMU's sockets are spoken."
        yield Fault("comparer.workers", workers, "a comparer beside QEMU's filters is one process", way_out)
    if workers != "1" and node.guests:
        way_out = "Give each comparer some of the guests instead."
        yield Fault("comparer.workers", workers, "a comparer of many `guests` is one process", way_out)


def _cpus_faults(node: Node) -> Iterator[Fault]:
    for group in node.fuse:
        named = {node.cpus[service] for service in group if service in node.cpus}
        if len(named) > 1:
            yield Fault(
                "cpus", str(dict(node.cpus)), f"{' and '.join(group)} are one process", "Name one CPU for them."
            )
    if "comparer" in node.cpus and node.comparer.workers > 1:
        way_out = "Take the comparer out of `cpus`, or leave comparer.workers at 1."
        yield Fault("cpus.comparer", str(node.cpus["comparer"]), "several workers would share one CPU", way_out)


def _run_dir_faults(node: Node) -> list[Fault]:
    if not node.run_dir.is_absolute():
        way_out = "Write it from the root, as in /run/lockstep."
        return [Fault("run_dir", str(node.run_dir), "not an absolute path", way_out)]
    names = [*SERVICES, *(["comparer.splitter"] if node.comparer.workers > 1 else [])]
    longest = max(len(f"/{name}.control") for name in names)
    if len(str(node.run_dir).encode()) + longest > _LONGEST_IPC_PATH:
        way_out = f"Choose one of {_LONGEST_IPC_PATH - longest} bytes at most."
        return [Fault("run_dir", str(node.run_dir), "too long for the path of a socket", way_out)]
    return []


def _endpoints(node: Node, services: tuple[Service, ...]) -> Iterator[tuple[str, str]]:
    for service in services:
        wiring = SERVICES[service]
        for stream in wiring.takes + wiring.gives:
            if stream == "released" and service == "comparer" and node.guests:
                for guest in node.guests:
                    yield f"guests.{guest.name}.released", guest.released.endpoint
            elif (stream in node.links or stream in LOCAL) and not node.link(stream).qemu():
                yield f"links.{stream}", node.link(stream).endpoint
        yield f"control.{service}", node.control_endpoint(service)
        yield f"publish.{service}", node.events_endpoint(service)
        if SERVICES[service].hears:
            for endpoint in node.events:
                yield "events", endpoint


def _qemu_addresses(node: Node, services: tuple[Service, ...]) -> Iterator[tuple[str, str]]:
    """Sockets of QEMU's that these services use, as `unix://` or `tcp://`."""
    for service in services:
        wiring = SERVICES[service]
        for stream in wiring.takes + wiring.gives:
            qemu = node.link(stream).qemu()
            if qemu is not None:
                yield f"links.{stream}", qemu.text
        for name in wiring.ports:
            address = node.port(service, name).address
            if node.frontend(service, name) == "qemu" and address:
                yield f"{service}.{name}.address", address
        if service == "comparer" and node.comparer.notify:
            yield "comparer.notify", node.comparer.notify


def _notify_faults(node: Node, services: tuple[Service, ...]) -> Iterator[Fault]:
    """Where checkpoints are told beside the streams, frames must carry no epochs of their own."""
    if "comparer" not in services:
        return
    qemu = [stream for stream in ("primary", "secondary") if node.link(stream).qemu()]
    if node.comparer.notify and len(qemu) < 2:
        why = "the other end is no filter of QEMU's, and `comparer.notify` is set"
        stream = "secondary" if "primary" in qemu else "primary"
        way_out = "Make it qemu+unix:///… or qemu+tcp://…, or leave out `notify`: links of our own carry the cuts."
        yield Fault(f"links.{stream}", node.link(stream).endpoint, why, way_out)
    if node.guests and (qemu or node.comparer.notify):
        way_out = "Run a comparer of its own for it."
        yield Fault("guests", "", "QEMU's sockets name no guest, so one of many can't be compared over them", way_out)


def _port_faults(node: Node, service: str, name: str) -> list[Fault]:
    port, frontend = node.port(service, name), node.frontend(service, name)
    setting = f"{service}.{name}"
    if frontend in ("tap", "packet") and not port.device:
        why = f"missing, and capture is `{frontend}`"
        return [Fault(f"{setting}.device", "", why, 'Name the interface, as in "vnet0".')]
    if frontend == "qemu" and not port.address:
        way_out = 'Say where the socket is, as in "unix:///run/vm1/net.sock".'
        return [Fault(f"{setting}.address", "", "missing, and capture is `qemu`", way_out)]
    if frontend == "vhost-user" and not (port.address or "").startswith("unix:"):
        why = f"{'not a unix socket' if port.address else 'missing'}, and capture is `vhost-user`"
        return [Fault(f"{setting}.address", port.address or "", why, "Name a socket, as in unix:///run/lockstep/vm1.")]
    if frontend == "pcap" and not (port.read or port.write):
        way_out = "Set `read`, `write` or both."
        return [Fault(f"{setting}.read", "", "missing, and so is `write`, and capture is `pcap`", way_out)]
    if frontend == "pcap" and port.read and not port.read.exists():
        return [Fault(f"{setting}.read", str(port.read), "no such file", "Name an existing capture.")]
    return []


def all_services() -> tuple[Service, ...]:
    """Every service, in the order in which a node starts them."""
    return get_args(Service)


def explain() -> Iterator[tuple[str, str, str]]:
    """Every setting: its name, its default (as in TOML, or nothing), and what it is."""
    yield from _explain(Node, "")


def _explain(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _explain(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is None else json.dumps(default, default=str)
        yield f"{prefix}{name}", shown, field.description or ""
        listed = next(iter(get_args(field.annotation)), None)
        if isinstance(listed, type) and issubclass(listed, BaseModel):
            yield from _explain_listed(listed, f"{prefix}{name}[].")


def _explain_listed(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """The settings of one of a list's tables; tables in it, which stand elsewhere too, by their name alone."""
    for name, field in model.model_fields.items():
        table = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        default = None if table or field.is_required() else field.get_default()
        yield f"{prefix}{name}", "" if default is None else json.dumps(default), field.description or ""
