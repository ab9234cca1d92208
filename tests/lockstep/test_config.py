"""A node's configuration: every fault at once, each with its setting, its value and a way out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from lockstep import config
from lockstep.config import ConfigError, Fault, Node, is_loopback, parse_endpoint, reachable

Load = Callable[..., Node]
Faults = Callable[..., list[Fault]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration written in the test; of the environment it sees what the test says."""

    def load_text(text: str = "", environ: Mapping[str, str] | None = None, **more: Any) -> Node:
        path = tmp_path / "node.toml"
        path.write_text(text, encoding="utf-8")
        return config.load(path, environ=environ or {}, **more)

    return load_text


@pytest.fixture
def faults(load: Load) -> Faults:
    """What is wrong with a configuration."""

    def faults_of(*arguments: Any, **more: Any) -> list[Fault]:
        with pytest.raises(ConfigError) as error:
            load(*arguments, **more)
        assert all(fault.why and fault.way_out for fault in error.value.faults)
        return error.value.faults

    return faults_of


def settings(found: list[Fault]) -> set[str]:
    return {fault.setting for fault in found}


#: A node of which nothing but what a test adds can be wrong.
SOUND = 'capture = "memory"\n'


# Reading.


def test_an_empty_file_is_a_node_with_the_defaults(load: Load) -> None:
    assert load("") == Node()


def test_without_a_file_the_environment_is_the_configuration() -> None:
    assert config.load(None, environ={"LOCKSTEP_NODE": "a"}).node == "a"


def test_what_stands_in_the_file_is_taken(load: Load) -> None:
    node = load("""
        node = "primary-1"
        services = ["mirror", "comparer"]
        run_dir = "/run/here"
        [mirror.network]
        device = "tap0"
        mtu = 9000
        [mirror.guest]
        device = "eth0"
        netns = "web"
        capture = "tap"
        [comparer]
        compare_timeout = 0.005
        on_divergence = "unprotect"
        [links]
        primary = "tcp://127.0.0.1:7001"
        released = { endpoint = "ipc:///run/here/released", hwm = 9 }
        [guest]
        name = "web-1"
        mac = "52:54:00:AB:cd:ef"
        addresses = ["10.0.0.1", "fe80::1"]
    """)
    assert (node.node, node.services, node.run_dir) == ("primary-1", ("mirror", "comparer"), Path("/run/here"))
    assert (node.mirror.network.device, node.mirror.network.mtu) == ("tap0", 9000)
    assert (node.mirror.guest.device, node.mirror.guest.netns) == ("eth0", "web")
    assert (node.comparer.compare_timeout, node.comparer.on_divergence) == (0.005, "unprotect")
    assert (node.links["primary"].endpoint, node.links["primary"].hwm) == ("tcp://127.0.0.1:7001", 8)
    assert (node.links["released"].endpoint, node.links["released"].hwm) == ("ipc:///run/here/released", 9)
    assert node.guest.addresses == ("10.0.0.1", "fe80::1")


def test_a_node_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("").node = "other"


def test_links_that_are_not_configured_are_sockets_in_run_dir(load: Load) -> None:
    node = load('run_dir = "/run/here"')
    assert node.link("primary").endpoint == "ipc:///run/here/primary"
    assert node.link("primary").hwm == 8


def test_control_and_event_sockets_lie_in_run_dir_unless_they_are_configured(load: Load) -> None:
    node = load("""
        run_dir = "/run/here"
        [control]
        mirror = "tcp://127.0.0.1:7100"
        [publish]
        mirror = "ipc:///run/there"
    """)
    assert node.control_endpoint("comparer") == "ipc:///run/here/comparer.control"
    assert node.events_endpoint("comparer") == "ipc:///run/here/comparer.events"
    assert node.control_endpoint("mirror") == "tcp://127.0.0.1:7100"
    assert node.events_endpoint("mirror") == "ipc:///run/there"


def test_a_missing_file_is_a_fault_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "missing.toml", environ={})
    (fault,) = error.value.faults
    assert (fault.setting, fault.value) == ("-c", str(tmp_path / "missing.toml"))
    assert fault.why == "No such file or directory"
    assert "-c" in fault.way_out


@pytest.mark.parametrize("raw", [b"a = = 3", b"\xff\xfe", b"[a\n", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_a_fault_that_names_the_place(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "node.toml").write_bytes(raw)
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "node.toml", environ={})
    (fault,) = error.value.faults
    assert fault.setting == "(file)"
    assert fault.why.startswith("not TOML: ")


# Faults of single settings.


def test_a_fault_names_its_setting_its_value_the_reason_and_a_way_out(faults: Faults) -> None:
    (fault,) = faults("[comparer]\ncompare_timeout = 0")
    assert fault == Fault("comparer.compare_timeout", "0", "out of range: 0.001 is the least", "Choose 0.001 at least.")
    assert str(fault) == "comparer.compare_timeout = 0: out of range: 0.001 is the least. Choose 0.001 at least."


def test_the_error_lists_all_faults_behind_the_name_of_the_file(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load("nonsense = 1\n[comparer]\ncompare_timeout = 0")
    first, *rest = str(error.value).splitlines()
    assert first == f"{tmp_path}/node.toml: 2 fault(s)"
    assert sorted(line.split()[0] for line in rest) == ["comparer.compare_timeout", "nonsense"]


@pytest.mark.parametrize(
    ("text", "setting", "meant"),
    [
        ("[comparer]\ncompare_timout = 3", "comparer.compare_timout", "compare_timeout"),
        ("servces = []", "servces", "services"),
        ('[mirror.guest]\ndevcie = "tap0"', "mirror.guest.devcie", "device"),
        ('[links.primary]\nendpoint = "ipc:///x"\nhmw = 3', "links.primary.hmw", "hwm"),
        ("[security]\nsecretkey = 3", "security.secretkey", "secret_key"),
    ],
)
def test_an_unknown_setting_is_a_fault_that_suggests_the_one_that_was_meant(
    faults: Faults, text: str, setting: str, meant: str
) -> None:
    (fault,) = faults(text)
    assert (fault.setting, fault.why) == (setting, "there is no such setting")
    assert fault.way_out == f"Did you mean `{meant}`?"


def test_an_unknown_setting_that_resembles_none_lists_those_that_exist(faults: Faults) -> None:
    (fault,) = faults("[log]\nxyzzy = 1")
    assert fault.way_out == "Remove it; here are: format, level."


def test_an_unknown_stream_lists_the_streams(faults: Faults) -> None:
    (fault,) = faults('[links]\nprimry = "ipc:///run/x"')
    assert fault.setting == "links.primry"
    assert all(f"'{stream}'" in fault.way_out for stream in ("ingress", "primary", "secondary", "released"))


@pytest.mark.parametrize("table", ["control", "publish"])
def test_an_unknown_service_lists_the_services(faults: Faults, table: str) -> None:
    (fault,) = faults(f'[{table}]\nmiror = "ipc:///run/x"')
    assert fault.setting == f"{table}.miror"
    assert all(f"'{service}'" in fault.way_out for service in ("mirror", "redirector", "rewriter", "comparer"))


@pytest.mark.parametrize(
    ("text", "setting", "value", "way_out"),
    [
        ("node = 3", "node", "3", "Write it in quotes."),
        ('capture = "tup"', "capture", '"tup"', "Choose 'tap', 'packet', 'qemu', 'vhost-user', 'pcap' or 'memory'."),
        ('services = "mirror"', "services", '"mirror"', 'Write a list, as in ["a", "b"].'),
        ('services = ["miror"]', "services.0", '"miror"', "Choose 'mirror', 'redirector', 'rewriter' or 'comparer'."),
        ("mirror = 3", "mirror", "3", "Write a table."),
        ("links = 3", "links", "3", "Write a table."),
        ("[links]\nprimary = 3", "links.primary", "3", "Write a table."),
        ('[comparer]\ncompare_timeout = "x"', "comparer.compare_timeout", '"x"', "Write a number."),
        ('[comparer]\nmax_flows = "x"', "comparer.max_flows", '"x"', "Write a whole number."),
        ("[comparer]\nmax_flows = 15", "comparer.max_flows", "15", "Choose 16 at least."),
        ("[comparer]\nmax_flows = 4000001", "comparer.max_flows", "4000001", "Choose 4000000 at most."),
        ("[comparer]\ncompare_timeout = nan", "comparer.compare_timeout", "NaN", None),
        ('[security]\ninsecure = "perhaps"', "security.insecure", '"perhaps"', "Write true or false."),
        ('[links]\nprimary = "udp://x:1"', "links.primary.endpoint", '"udp://x:1"', None),
        ('[links.primary]\nendpoint = "ipc:///run/x"\nhwm = 0', "links.primary.hwm", "0", "Choose 1 at least."),
        ("[links.primary]\nhwm = 3", "links.primary.endpoint", "", "Add it."),
        ('events = ["nowhere"]', "events", '["nowhere"]', None),
        ('[mirror.guest]\ndevice = "a/b"', "mirror.guest.device", '"a/b"', None),
        ('[mirror.guest]\ndevice = ""', "mirror.guest.device", '""', None),
        ('[mirror.guest]\ndevice = "sixteen-letters!"', "mirror.guest.device", '"sixteen-letters!"', None),
        ("[mirror.guest]\nmtu = 575", "mirror.guest.mtu", "575", "Choose 576 at least."),
        ('[guest]\nmac = "52:54"', "guest.mac", '"52:54"', None),
        ('[guest]\nmac = "52:54:00:00:00:01"\naddresses = ["web"]', "guest.addresses", '["web"]', None),
        ('[log]\nlevel = "loud"', "log.level", '"loud"', "Choose 'debug', 'info', 'warning' or 'error'."),
        ('[comparer]\non_divergence = "panic"', "comparer.on_divergence", '"panic"', None),
        ('[comparer]\npassthrough = [{ network = "10.0.0.1/24" }]', "comparer.passthrough.0.network", None, None),
    ],
)
def test_a_wrong_value_is_a_fault(
    faults: Faults, text: str, setting: str, value: str | None, way_out: str | None
) -> None:
    (fault,) = faults(text)
    assert fault.setting == setting
    assert value is None or fault.value == value
    assert way_out is None or fault.way_out == way_out


def test_a_device_name_is_measured_in_the_kernels_bytes(faults: Faults, load: Load) -> None:
    """IFNAMSIZ is 16 with the closing zero, whatever the alphabet."""
    assert load(f'[mirror.guest]\ndevice = "{"é" * 7}a"').mirror.guest.device == "é" * 7 + "a"
    (fault,) = faults(f'[mirror.guest]\ndevice = "{"é" * 8}"')
    assert fault.setting == "mirror.guest.device"


def test_a_device_name_is_no_pattern(faults: Faults) -> None:
    """The kernel makes `tap0` out of `tap%d`."""
    (fault,) = faults('[mirror.guest]\ndevice = "tap%d"')
    assert fault.setting == "mirror.guest.device"


def test_addresses_are_announced_with_the_mac_so_they_need_it(faults: Faults) -> None:
    (fault,) = faults('[guest]\naddresses = ["10.0.0.1"]')
    assert fault.setting == "guest"
    assert "mac" in fault.why


# All of them at once.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'nod = "x"\ncapture = 3\n[comparer]\ncompare_timeout = "soon"\nmax_flows = 1\n[links]\nprimry = "ipc:///x"\n',
            {"nod", "capture", "comparer.compare_timeout", "comparer.max_flows", "links.primry"},
        ),
        (
            'services = ["mirror"]\n[comparer]\nmax_flows = 1\n',
            {"mirror.network.device", "mirror.guest.device", "comparer.max_flows"},
        ),
        (
            'services = ["mirror"]\n[links.primary]\nhwm = 3\n',
            {"mirror.network.device", "mirror.guest.device", "links.primary.endpoint"},
        ),
        (
            SOUND + 'services = ["comparer"]\n[links]\nprimary = "tcp://10.0.0.1:7000"\nsecondary = "tcp://*:0"\n',
            {"links.primary", "links.secondary.endpoint"},
        ),
        (SOUND + '[control]\nmiror = "ipc:///x"\nmirror = "x"\n', {"control.miror", "control"}),
        (SOUND + 'services = ["mirror", "x"]\n[guest]\nmac = "x"\naddresses = ["y"]\n',
         {"services.1", "guest.mac", "guest.addresses"}),
    ],
)  # fmt: skip
def test_every_fault_is_told_at_once(faults: Faults, text: str, expected: set[str]) -> None:
    assert settings(faults(text)) == expected


def test_a_fault_is_told_once(faults: Faults) -> None:
    found = faults('services = ["mirror", "mirror"]\n[control]\nmiror = "ipc:///x"\nmirror = "x"\n')
    assert len(found) == len(set(found))


# The environment.


def test_a_variable_lies_over_the_files_setting(load: Load) -> None:
    node = load("[comparer]\ncompare_timeout = 3\nmax_flows = 100", {"LOCKSTEP_COMPARER__COMPARE_TIMEOUT": "0.5"})
    assert (node.comparer.compare_timeout, node.comparer.max_flows) == (0.5, 100)


def test_variables_reach_every_depth(load: Load) -> None:
    node = load(
        "",
        {
            "LOCKSTEP_MIRROR__GUEST__DEVICE": "tap7",
            "LOCKSTEP_SECURITY__INSECURE": "true",
            "LOCKSTEP_LINKS__PRIMARY": "ipc:///run/elsewhere",
            "LOCKSTEP_CONTROL__MIRROR": "ipc:///run/control",
            "LOCKSTEP_RUN_DIR": "/run/there",
        },
    )
    assert node.mirror.guest.device == "tap7"
    assert node.security.insecure is True
    assert node.link("primary").endpoint == "ipc:///run/elsewhere"
    assert node.control_endpoint("mirror") == "ipc:///run/control"
    assert node.run_dir == Path("/run/there")


def test_lists_and_tables_are_written_as_json(load: Load) -> None:
    node = load(
        SOUND,
        {
            "LOCKSTEP_SERVICES": '["mirror", "comparer"]',
            "LOCKSTEP_GUEST": '{"mac": "52:54:00:00:00:01", "addresses": ["10.0.0.1"]}',
            "LOCKSTEP_LINKS__PRIMARY": '{"endpoint": "ipc:///run/x", "hwm": 4}',
        },
    )
    assert node.services == ("mirror", "comparer")
    assert node.guest.addresses == ("10.0.0.1",)
    assert node.link("primary").hwm == 4


def test_a_list_that_is_no_json_is_a_fault(faults: Faults) -> None:
    (fault,) = faults("", {"LOCKSTEP_SERVICES": '["mirror"'})
    assert (fault.setting, fault.way_out) == ("services", 'Write a list, as in ["a", "b"].')


def test_a_variable_of_no_setting_is_a_fault(faults: Faults) -> None:
    (fault,) = faults("", {"LOCKSTEP_COMPARER__COMPARE_TIMOUT": "1"})
    assert (fault.setting, fault.way_out) == ("comparer.compare_timout", "Did you mean `compare_timeout`?")
    (fault,) = faults("", {"LOCKSTEP_XYZZY": "1"})
    assert fault.setting == "xyzzy"


@pytest.mark.parametrize("name", ["LOCKSTEP_", "LOCKSTEP___X", "LOCKSTEP_COMPARER__", "LOCKSTEP_NODE__X__Y"])
def test_a_variable_with_an_odd_name_is_a_fault(faults: Faults, name: str) -> None:
    assert faults('node = "a"\n', {name: "1"})


def test_a_variable_below_a_setting_that_is_no_table_is_a_fault(faults: Faults) -> None:
    (fault,) = faults('node = "a"', {"LOCKSTEP_NODE__X": "1"})
    assert fault == Fault(
        "LOCKSTEP_NODE__X", "1", "`node` is no table", "Name a setting of a table, as TABLE__SETTING."
    )


@pytest.mark.parametrize("name", ["LOCKSTEP_CONFIG", "LOCKSTEP_REQUIRE", "LOCKSTEP_CORPUS", "LOCKSTEP_COMPILE"])
def test_the_projects_own_variables_are_no_settings(load: Load, name: str) -> None:
    assert load("", {name: "all"}) == Node()


def test_other_peoples_variables_are_left_alone(load: Load) -> None:
    assert load("", {"PATH": "/bin", "LOCKSTEPNODE": "x", "NODE": "x"}) == Node()


def test_the_processs_own_environment_is_read(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCKSTEP_NODE", "from-outside")
    assert config.load(None).node == "from-outside"


def node_or_faults(**more: Any) -> Node | list[Fault]:
    """One of the two; anything else is a failure."""
    try:
        return config.load(None, **more)
    except ConfigError as error:
        return error.faults


@given(st.dictionaries(st.text("ABCXYZ_", max_size=12), st.text(max_size=12), max_size=4))
def test_any_environment_gives_a_node_or_faults(environ: dict[str, str]) -> None:
    known = ["NODE", "COMPARER__MAX_FLOWS", "LINKS__PRIMARY", "MIRROR__GUEST__MTU", "SERVICES", "EVENTS", "GUEST__MAC"]
    named = {f"LOCKSTEP_{name}": text for name, text in environ.items()}
    named |= {f"LOCKSTEP_{name}": text for name, text in zip(known, environ.values(), strict=False)}
    assert node_or_faults(environ=named)


# Ports.


def test_what_will_not_run_needs_no_ports(load: Load) -> None:
    load('services = ["comparer"]')
    load("", services=("comparer",))


def test_a_service_that_will_run_needs_its_devices(faults: Faults) -> None:
    for found in (faults('services = ["mirror"]'), faults("", services=("mirror",))):
        assert settings(found) == {"mirror.network.device", "mirror.guest.device"}
        assert {fault.why for fault in found} == {"missing, and capture is `tap`"}


def test_a_port_of_capture_pcap_needs_a_file(faults: Faults, load: Load, tmp_path: Path) -> None:
    text = 'capture = "pcap"\nservices = ["rewriter"]\n[rewriter.guest]\n'
    assert settings(faults(text)) == {"rewriter.guest.read"}
    missing = tmp_path / "missing.pcap"
    (fault,) = faults(f'{text}read = "{missing}"')
    assert (fault.setting, fault.value, fault.why) == ("rewriter.guest.read", str(missing), "no such file")
    missing.write_bytes(b"")
    load(f'{text}read = "{missing}"')
    load(f'{text}write = "{tmp_path}/out.pcap"')


def test_a_ports_own_capture_is_taken_before_the_nodes(load: Load) -> None:
    node = load('capture = "pcap"\n[mirror.guest]\ncapture = "memory"')
    assert node.frontend("mirror", "guest") == "memory"
    assert node.frontend("mirror", "network") == "pcap"


def test_the_capture_of_the_command_line_is_every_ports(load: Load) -> None:
    node = load('capture = "pcap"\n[mirror.guest]\ncapture = "tap"\nmtu = 1500\n', capture="memory")
    assert node.frontend("mirror", "guest") == node.frontend("mirror", "network") == "memory"
    assert node.mirror.guest.mtu == 1500


def test_the_capture_of_the_command_line_is_before_the_environments(load: Load) -> None:
    environ = {"LOCKSTEP_CAPTURE": "pcap", "LOCKSTEP_MIRROR__GUEST__CAPTURE": "tap"}
    assert load("", environ, capture="memory").frontend("mirror", "guest") == "memory"


# Endpoints.


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ipc:///run/x", ("ipc", "/run/x")),
        ("ipc:///" + "x" * 106, ("ipc", "/" + "x" * 106)),
        ("tcp://127.0.0.1:1", ("tcp", "127.0.0.1:1")),
        ("tcp://*:65535", ("tcp", "*:65535")),
        ("tcp://[::1]:7000", ("tcp", "[::1]:7000")),
        ("tcp://[fe80::1%1]:7000", ("tcp", "[fe80::1%1]:7000")),
        ("tcp://host-1.example:7000", ("tcp", "host-1.example:7000")),
        ("ipc://run/x", None),
        ("ipc://", None),
        ("ipc:///" + "x" * 107, None),
        ("ipc:///" + "é" * 54, None),
        ("tcp://127.0.0.1", None),
        ("tcp://127.0.0.1:0", None),
        ("tcp://127.0.0.1:65536", None),
        ("tcp://127.0.0.1:*", None),
        ("tcp://:7000", None),
        ("tcp://a:b:7000", None),
        ("tcp://10.0.0.1;127.0.0.1:7000", None),
        ("udp://127.0.0.1:7000", None),
        ("inproc://x", None),
        ("", None),
        ("tcp://127.0.0.1:7000\n", None),
    ],
)
def test_an_endpoint_is_an_absolute_path_or_a_host_and_a_port(text: str, parts: tuple[str, str] | None) -> None:
    if parts is None:
        with pytest.raises(ValueError, match="endpoint"):
            parse_endpoint(text)
    else:
        assert parse_endpoint(text) == parts


LOCAL = ["ipc:///run/x", "tcp://127.0.0.1:1", "tcp://127.8.9.10:1", "tcp://localhost:1", "tcp://[::1]:1"]
REMOTE = ["tcp://10.0.0.1:1", "tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://[fd00::1]:1", "tcp://web:1"]


@pytest.mark.parametrize("endpoint", LOCAL + REMOTE)
def test_loopback_is_what_this_machine_alone_reaches(endpoint: str) -> None:
    assert is_loopback(endpoint) == (endpoint in LOCAL)


@pytest.mark.parametrize(
    ("bound", "connected"),
    [
        ("tcp://*:7000", "tcp://127.0.0.1:7000"),
        ("tcp://0.0.0.0:7000", "tcp://127.0.0.1:7000"),
        ("tcp://[::]:7000", "tcp://[::1]:7000"),
        ("tcp://10.0.0.1:7000", "tcp://10.0.0.1:7000"),
        ("ipc:///run/*:x", "ipc:///run/*:x"),
    ],
)
def test_what_is_bound_to_every_address_is_reached_over_the_loopback(bound: str, connected: str) -> None:
    assert reachable(bound) == connected


PUBLIC = zmq.curve_keypair()[0].decode()


@pytest.mark.parametrize(
    ("text", "service", "setting"),
    [
        *((f'[links]\nprimary = "{endpoint}"', "mirror", "links.primary") for endpoint in REMOTE),
        ('[links]\nprimary = "tcp://10.0.0.1:7000"', "comparer", "links.primary"),
        ('[links]\nto_guest = "tcp://10.0.0.1:7000"', "rewriter", "links.to_guest"),
        ('[control]\nmirror = "tcp://*:7000"', "mirror", "control.mirror"),
        ('[publish]\nmirror = "tcp://*:7000"', "mirror", "publish.mirror"),
        ('events = ["tcp://10.0.0.2:7000"]', "rewriter", "events"),
    ],
)
def test_tcp_off_the_loopback_needs_keys_or_an_explicit_insecure(
    faults: Faults, load: Load, text: str, service: str, setting: str
) -> None:
    (fault,) = faults(SOUND + text, services=(service,))
    assert (fault.setting, fault.why) == (setting, "leaves this machine without encryption")
    assert "security.insecure" in fault.way_out
    assert "keygen" in fault.way_out
    load(f"{SOUND}{text}\n[security]\ninsecure = true", services=(service,))
    load(f'{SOUND}{text}\n[security]\nsecret_key = "/etc/key"\npeers = ["{PUBLIC}"]', services=(service,))


def test_tcp_on_the_loopback_needs_none(load: Load) -> None:
    for endpoint in LOCAL:
        load(f'{SOUND}[links]\nprimary = "{endpoint}"', services=("mirror",))


def test_links_of_services_that_run_elsewhere_are_not_judged(load: Load) -> None:
    load(f'{SOUND}[links]\nsecondary = "tcp://10.0.0.1:7000"', services=("mirror",))


def test_a_secret_key_without_peers_is_a_fault(faults: Faults) -> None:
    (fault,) = faults(f'{SOUND}[security]\nsecret_key = "/etc/key"')
    assert (fault.setting, fault.value) == ("security.peers", "[]")


@pytest.mark.parametrize(
    "key", ["", "x", PUBLIC[:-1], PUBLIC + "x", "'" * 40, " " * 40, "é" * 40, "\\\\" * 40], ids=range(8)
)
def test_a_public_key_that_is_no_z85_is_a_fault(faults: Faults, key: str) -> None:
    """ZeroMQ RFC 32: 40 characters of an alphabet without quotes, backslash, comma and space."""
    (fault,) = faults(f'{SOUND}[security]\npeers = ["{key}"]')
    assert fault.setting == "security.peers"
    (fault,) = faults(f'{SOUND}[links.primary]\nendpoint = "ipc:///run/x"\nkey = "{key}"')
    assert fault.setting == "links.primary.key"


def test_every_public_key_of_libzmq_is_taken(load: Load) -> None:
    keys = [zmq.curve_keypair()[0].decode() for _ in range(50)]
    assert load(f"{SOUND}[security]\npeers = {keys}").security.peers == tuple(keys)


# The run directory.


@pytest.mark.parametrize("service", ["mirror", "redirector", "rewriter", "comparer"])
def test_a_run_dir_too_long_for_the_path_of_a_socket_is_a_fault(faults: Faults, service: str) -> None:
    (fault,) = faults(f'{SOUND}run_dir = "/{"x" * 106}"', services=(service,))
    assert fault.setting == "run_dir"
    assert "too long" in fault.why


@pytest.mark.parametrize("service", ["mirror", "redirector", "rewriter", "comparer"])
def test_a_run_dir_that_is_not_absolute_is_a_fault(faults: Faults, service: str) -> None:
    (fault,) = faults(f'{SOUND}run_dir = "run"', services=(service,))
    assert (fault.setting, fault.value, fault.why) == ("run_dir", "run", "not an absolute path")


def test_the_longest_run_dir_that_passes_gives_paths_that_can_be_bound(load: Load) -> None:
    """sun_path has 107 bytes and a zero."""
    length = 107 - len("/redirector.control")
    node = load(f'{SOUND}run_dir = "/{"x" * (length - 1)}"', services=("redirector",))
    assert len(parse_endpoint(node.control_endpoint("redirector"))[1]) == 107


def test_a_link_too_long_for_the_path_of_a_socket_is_a_fault(faults: Faults) -> None:
    (fault,) = faults(f'{SOUND}[links]\nprimary = "ipc:///{"x" * 107}"')
    assert fault.setting == "links.primary.endpoint"


# What `--explain` prints.


def test_every_setting_is_explained_with_its_default() -> None:
    explained = {name: (default, meaning) for name, default, meaning in config.explain()}
    assert explained["comparer.compare_timeout"] == ("3.0", "seconds a primary frame may wait for the secondary's")
    assert explained["capture"][0] == '"tap"'
    assert "mirror.guest.device" in explained
    assert all(meaning for _, meaning in explained.values())


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
), st.sampled_from([
    ("services",), ("run_dir",), ("capture",), ("links",), ("links", "primary"), ("mirror",), ("mirror", "guest"),
    ("mirror", "guest", "device"), ("comparer",), ("comparer", "compare_timeout"), ("comparer", "passthrough"),
    ("guest", "addresses"), ("security", "peers"), ("events",), ("control",), ("publish", "mirror"),
]))  # fmt: skip
def test_any_value_in_any_place_is_taken_or_a_fault(value: Any, place: tuple[str, ...]) -> None:
    """Through the environment's JSON, since every value can be written there."""
    environ = {f"LOCKSTEP_{'__'.join(place).upper()}": json.dumps(value), "LOCKSTEP_SERVICES": '["mirror"]'}
    outcome = node_or_faults(environ=environ, capture="memory")
    assert isinstance(outcome, Node) or all(fault.setting and fault.why and fault.way_out for fault in outcome)


# Fused services.


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ('fuse = ["redirector", "rewriter"]', [("mirror",), ("redirector", "rewriter"), ("comparer",)]),
        (
            'fuse = [["rewriter", "redirector"], ["mirror", "comparer"]]',
            [("mirror", "comparer"), ("rewriter", "redirector")],
        ),
        ('fuse = ["mirror", "redirector", "rewriter", "comparer"]', [("mirror", "redirector", "rewriter", "comparer")]),
        ("", [("mirror",), ("redirector",), ("rewriter",), ("comparer",)]),
        ("fuse = []", [("mirror",), ("redirector",), ("rewriter",), ("comparer",)]),
    ],
)  # fmt: skip
def test_a_process_runs_a_service_or_all_that_are_fused(load: Load, text: str, groups: list[tuple[str, ...]]) -> None:
    node = load(f'{SOUND}services = ["mirror", "redirector", "rewriter", "comparer"]\n{text}')
    assert node.processes() == groups


def test_what_is_fused_may_be_said_by_the_environment(load: Load) -> None:
    node = load(SOUND, {"LOCKSTEP_FUSE": '["redirector", "rewriter"]'})
    assert node.with_fused(("rewriter",)) == ("redirector", "rewriter")
    assert node.with_fused(("mirror",)) == ("mirror",)


def test_a_service_runs_in_one_process_alone(faults: Faults) -> None:
    (fault,) = faults(f'{SOUND}fuse = [["mirror", "comparer"], ["comparer", "rewriter"]]')
    assert (fault.setting, fault.why) == ("fuse", "comparer is named twice, and runs in one process alone")


def test_what_is_fused_is_of_this_node(faults: Faults) -> None:
    (fault,) = faults(f'{SOUND}services = ["mirror"]\nfuse = ["mirror", "comparer"]')
    assert (fault.setting, fault.why) == ("fuse", "comparer is not among this node's `services`")


def test_what_is_fused_with_a_service_must_be_configured_too(faults: Faults) -> None:
    found = faults('fuse = ["redirector", "rewriter"]', services=("redirector",))
    assert settings(found) == {"redirector.uplink.device", "rewriter.guest.device"}


@pytest.mark.parametrize(
    "text", ['fuse = "mirror"', 'fuse = ["miror"]', "fuse = [7]", 'fuse = ["mirror", ["comparer"]]']
)
def test_what_is_no_list_of_services_can_not_be_fused(faults: Faults, text: str) -> None:
    assert all(fault.setting.startswith("fuse") for fault in faults(SOUND + text))


# A comparer of many guests.

GUESTS = SOUND + 'services = ["comparer"]\n'


def guests(*tables: str) -> str:
    return GUESTS + "".join(f"[[guests]]\n{table}\n" for table in tables)


def test_guests_are_tables_with_settings_of_their_own(load: Load) -> None:
    node = load(
        guests(
            'name = "a"\nreleased = "ipc:///r/a"\n[guests.comparer]\ncompare_timeout = 0.5',
            'name = "b"\nreleased = { endpoint = "tcp://127.0.0.1:7104", hwm = 8 }',
        )
        + '[comparer]\non_divergence = "hold"\n'
    )
    a, b = node.of_guest("a"), node.of_guest("b")
    assert (a.comparer.compare_timeout, a.comparer.on_divergence, a.guest.name) == (0.5, "hold", "a")
    assert (b.comparer.compare_timeout, b.link("released").endpoint, b.link("released").hwm) == (
        3.0, "tcp://127.0.0.1:7104", 8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "setting"),
    [
        (('name = "a"\nreleased = "ipc:///r/a"', 'name = "a"\nreleased = "ipc:///r/b"'), "guests"),
        (('name = "a"\nreleased = "ipc:///r/a"', 'name = "b"\nreleased = "ipc:///r/a"'), "guests"),
        (('name = ""\nreleased = "ipc:///r/a"',), "guests.0.name"),
        (('released = "ipc:///r/a"',), "guests.0.name"),
        (('name = "a"',), "guests.0.released"),
        (('name = "a"\nreleased = "x"',), "guests.0.released.endpoint"),
        (('name = "a"\nreleased = "ipc:///r/a"\n[guests.comparer]\nnonsense = 1',), "guests.0.comparer.nonsense"),
        (('name = "a"\nreleased = "ipc:///r/a"\n[guests.comparer]\ncapture_dir = "/c"',), "guests.0.comparer"),
        (('name = "a"\nreleased = "tcp://10.0.0.1:7104"',), "guests.a.released"),
    ],
)
def test_a_faulty_guest_is_named(faults: Faults, tables: tuple[str, ...], setting: str) -> None:
    assert [fault.setting for fault in faults(guests(*tables))] == [setting]


def test_a_comparer_of_many_guests_has_a_process_of_its_own(faults: Faults) -> None:
    text = guests('name = "a"\nreleased = "ipc:///r/a"').replace('["comparer"]', '["comparer", "mirror"]')
    (fault,) = faults('fuse = ["comparer", "mirror"]\n' + text)
    assert fault.setting == "fuse"


# QEMU's sockets.


def faults_of(text: str, tmp_path: Path, services: tuple[Any, ...]) -> list[str]:
    file = tmp_path / "node.toml"
    file.write_text(text)
    try:
        config.load(file, environ={}, services=services)
    except ConfigError as error:
        return [str(fault) for fault in error.faults]
    return []


def test_a_qemu_port_needs_its_address(tmp_path: Path) -> None:
    (fault,) = faults_of('capture = "qemu"', tmp_path, ("rewriter",))
    assert fault.startswith("rewriter.guest.address: missing, and capture is `qemu`. Say where")
    text = 'capture = "qemu"\n[rewriter.guest]\naddress = "unix:///run/net"\nvnet_hdr = 12'
    assert faults_of(text, tmp_path, ("rewriter",)) == []


@pytest.mark.parametrize("value", ["/run/net", "unix://net", "tcp://host", "qemu+unix:///net"])
def test_a_wrong_address_of_a_qemu_is_a_fault(tmp_path: Path, value: str) -> None:
    (fault, *_) = faults_of(f'capture = "qemu"\n[rewriter.guest]\naddress = "{value}"', tmp_path, ("rewriter",))
    assert "a " in fault
    assert "socket" in fault
    (fault, *_) = faults_of(f'links.primary = "qemu+{value}"', tmp_path, ("comparer",))
    assert fault.startswith("links.primary")


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ('links.secondary = "qemu+tcp://192.0.2.1:9000"', "links.secondary"),
        ('[mirror.guest]\ncapture = "qemu"\naddress = "tcp://192.0.2.1:9000"', "mirror.guest.address"),
    ],
)
def test_a_qemu_on_another_machine_is_a_deliberate_choice(tmp_path: Path, text: str, setting: str) -> None:
    """A key does not help: QEMU's sockets know no encryption."""
    service = "comparer" if setting.startswith("links") else "mirror"
    network = '[mirror.network]\ndevice = "x"\n'
    key = f'[security]\nsecret_key = "{tmp_path}/key"\npeers = ["{"a" * 40}"]\n'
    for more, expected in (("", 1), (key, 1), ("[security]\ninsecure = true\n", 0)):
        found = faults_of(f"{text}\n{network}{more}", tmp_path, (service,))
        assert len(found) == expected, found
        assert all(fault.startswith(f"{setting} = tcp://192.0.2.1:9000: leaves this machine") for fault in found)


def test_notify_needs_streams_that_carry_no_epochs(tmp_path: Path) -> None:
    text = '[comparer]\nnotify = "unix:///run/notify"\n[links]\nprimary = "qemu+unix:///run/p"\n'
    (fault,) = faults_of(text, tmp_path, ("comparer",))
    assert fault.startswith("links.secondary = ipc:///run/lockstep/secondary: the other end is no filter of QEMU's")
    assert faults_of(f'{text}secondary = "qemu+unix:///run/s"\n', tmp_path, ("comparer",)) == []


@pytest.mark.parametrize(("address", "why"), [("", "missing"), ("tcp://127.0.0.1:1", "not a unix socket")])
def test_vhost_user_needs_a_unix_socket(faults: Faults, address: str, why: str) -> None:
    written = f'address = "{address}"' if address else ""
    (fault,) = faults(
        f"""
        [mirror.guest]
        capture = "vhost-user"
        {written}
        [mirror.network]
        device = "tap0"
        """,
        services=("mirror",),
    )
    assert (fault.setting, fault.why) == ("mirror.guest.address", f"{why}, and capture is `vhost-user`")


# A comparer of several processes.


def test_a_worker_has_its_share_of_the_limits_and_links_to_the_splitter(load: Load) -> None:
    node = load('run_dir = "/r"\n[comparer]\nworkers = 3\nmax_flows = 100\n[links]\nprimary = "tcp://127.0.0.1:7102"\n')
    worker, splitter = node.of_worker("2"), node.of_worker("splitter")
    assert node.workers() == ("0", "1", "2", "splitter")
    assert (worker.comparer.max_flows, splitter.comparer.max_flows) == (34, 100)
    assert [worker.link(stream).endpoint for stream in ("primary", "secondary", "released")] == [
        "ipc:///r/primary@2", "ipc:///r/secondary@2", "ipc:///r/released@2",
    ]  # fmt: skip
    assert splitter.link("primary").endpoint == "tcp://127.0.0.1:7102"
    assert splitter.link("primary@2") == worker.link("primary")
    assert worker.control_endpoint("comparer") == "ipc:///r/comparer.2.control"
    assert node.control_endpoint("comparer") == "ipc:///r/comparer.control"
    assert Node().workers() == ()


@pytest.mark.parametrize(
    "text",
    [
        'fuse = ["comparer", "mirror"]\n[comparer]\nworkers = 2\n',
        '[[guests]]\nname = "a"\nreleased = "ipc:///r/a"\n[comparer]\nworkers = 2\n',
        "[comparer]\nworkers = 0\n",
        "[comparer]\nworkers = 65\n",
    ],
)
def test_workers_are_of_a_comparer_alone(faults: Faults, text: str) -> None:
    assert [fault.setting for fault in faults(SOUND + text)] == ["comparer.workers"]


# CPUs.


def test_a_process_runs_on_the_cpu_of_the_first_of_its_services_that_names_one(load: Load) -> None:
    node = load('fuse = ["redirector", "rewriter"]\n[cpus]\nmirror = 0\nrewriter = 3\n')
    assert [node.cpu_of(node.with_fused((service,))) for service in ("mirror", "redirector", "comparer")] == [
        0,
        3,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("[cpus]\nmirror = -1\n", "cpus.mirror"),
        ("[cpus]\nmirror = 1024\n", "cpus.mirror"),
        ('[cpus]\nmirror = "all"\n', "cpus.mirror"),
        ('fuse = ["mirror", "comparer"]\n[cpus]\nmirror = 0\ncomparer = 1\n', "cpus"),
        ("[cpus]\ncomparer = 1\n[comparer]\nworkers = 2\n", "cpus.comparer"),
    ],
)
def test_a_cpu_is_one_number_for_a_process(faults: Faults, text: str, setting: str) -> None:
    assert [fault.setting for fault in faults(SOUND + text)] == [setting]


# Digest mode.


@pytest.mark.parametrize(
    "text",
    ["[comparer]\nworkers = 2\n", '[[guests]]\nname = "a"\nreleased = "ipc:///r/a"\n[comparer]\n'],
)
def test_digests_are_read_by_several_workers_and_for_many_guests(load: Load, text: str) -> None:
    assert load(f'{SOUND}{text}secondary = "digest"\n').comparer.secondary == "digest"


def test_all_guests_of_a_comparer_send_digests_or_none_does(faults: Faults) -> None:
    text = '[[guests]]\nname = "a"\nreleased = "ipc:///r/a"\ncomparer = { secondary = "digest" }\n'
    (fault,) = faults(SOUND + text)
    assert "secondary is set for all guests together" in fault.why


def test_digests_go_over_the_link_of_the_secondary(load: Load) -> None:
    node = load('[links]\nsecondary = "tcp://127.0.0.1:7103"\n[redirector]\nsecondary = "digest"\n')
    assert node.link("digests") == node.link("secondary")
    assert Node().link("digests").endpoint == "ipc:///run/lockstep/secondary"


def test_a_workers_digests_go_over_the_link_of_its_share_of_the_secondary(load: Load) -> None:
    """Whatever the comparer's own link is; the splitter and the worker agree on it."""
    node = load('[links]\nsecondary = "tcp://127.0.0.1:7103"\n[comparer]\nworkers = 2\nsecondary = "digest"\n')
    splitter, worker = node.of_worker("splitter"), node.of_worker("1")
    assert splitter.link("digests") == node.link("secondary")
    assert splitter.link("digests@1") == worker.link("digests")
    assert worker.link("digests").endpoint.endswith("/secondary@1")
