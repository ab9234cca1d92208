"""Programs that know nothing of Lockstep: curl and nginx, redis, dig, ping, and a session that idles."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.answerer import probe
from scenarios.nameserver import address_of
from scenarios.traffic import (
    HERE,
    MIB,
    answerers,
    ask,
    assert_protected,
    connect,
    end,
    replicated,
    said,
    settled,
    show,
)

from lockstep.demo.addresses import ADDRESSES
from lockstep.demo.stage import Stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

GUEST = ADDRESSES["ipv4"].guest


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage on which nothing ever diverges, or a test has failed."""
    with Stage(keep_logs=tmp_path_factory.mktemp("calm")) as stage:
        yield stage


# --- nginx and curl

NGINX = """
daemon off; master_process off; error_log stderr; pid {own}/pid; user root;
events {{}}
http {{
    access_log off; keepalive_requests 10000; sendfile on; default_type application/octet-stream;
    client_body_temp_path {own}/body; proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi;
    scgi_temp_path {own}/scgi; uwsgi_temp_path {own}/uwsgi;
    server {{
        listen 80; listen [::]:80; root {docroot};
        location /differs/ {{ alias {docroot}/; add_header X-Replica {replica}; }}
    }}
}}
"""


class Docroot:
    """Files of many sizes, and what each must hash to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests = {f"{size}.bin": self._make(size) for size in [0, 1, *(size * 4099 for size in range(1, 24))]}
        self.large = self._make(64 * MIB)

    def _make(self, size: int) -> str:
        content = hashlib.shake_128(str(size).encode()).digest(min(size, MIB)) * -(-size // MIB)
        (self.path / f"{size}.bin").write_bytes(content[:size])
        return hashlib.sha256(content[:size]).hexdigest()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Docroot]]:
    """nginx on both guests. Their Date headers differ now and then, so this stage has divergences."""
    folder = tmp_path_factory.mktemp("web")
    docroot = Docroot(tmp_path_factory.mktemp("docroot"))
    argv = []
    for replica in ("primary", "secondary"):
        own = folder / replica
        own.mkdir()
        (own / "nginx.conf").write_text(NGINX.format(own=own, docroot=docroot.path, replica=replica))
        argv.append(["nginx", "-p", own, "-c", own / "nginx.conf"])
    with Stage(keep_logs=folder) as stage, replicated(stage, *argv, port=80, stderr=subprocess.DEVNULL):
        yield stage, docroot


def curl(stage: Stage, names: list[str], into: Path, folder: str = "") -> tuple[dict[str, str], int]:
    """Fetch files over as few connections as curl likes: SHA-256 by name, and how many connections it took."""
    into.mkdir(exist_ok=True)
    transfers = [f'url = "http://{GUEST}/{folder}{name}"\noutput = "{into / name}"\n' for name in names]
    config = into / "curl.conf"
    config.write_text("".join(transfers))
    shown = ["--silent", "--show-error", "--fail", "--max-time", "60", "--write-out", "%{http_code} %{num_connects}\n"]
    done = stage.run(stage.client_ns, ["curl", *shown, "--config", config], timeout=90)
    assert done.returncode == 0, done.stderr
    answers = [line.split() for line in done.stdout.splitlines()]
    assert [code for code, _ in answers] == ["200"] * len(names)
    digests = {name: hashlib.sha256((into / name).read_bytes()).hexdigest() for name in names}
    return digests, sum(int(connects) for _, connects in answers)


@pytest.mark.needs("nginx", "curl")
def test_one_request_a_connection(web: tuple[Stage, Docroot], tmp_path: Path) -> None:
    """Each of 25 requests succeeds, whether or not the two Date headers agreed on its connection."""
    stage, docroot = web
    for name, digest in docroot.digests.items():
        assert curl(stage, [name], tmp_path) == ({name: digest}, 1)
    counted = settled(stage)
    show(requests=len(docroot.digests), divergences=counted["divergences"], released=counted["released"])


@pytest.mark.needs("nginx", "curl")
def test_keep_alive(web: tuple[Stage, Docroot], tmp_path: Path) -> None:
    """25 requests on one connection succeed, and nobody has to connect again after a divergence."""
    stage, docroot = web
    assert curl(stage, list(docroot.digests), tmp_path) == (docroot.digests, 1)


@pytest.mark.needs("nginx", "curl")
def test_answers_that_differ(web: tuple[Stage, Docroot], tmp_path: Path) -> None:
    """Where the replicas say different things, at different length, each request gets the primary's answer."""
    stage, docroot = web
    before = settled(stage)["divergences"]
    for name in list(docroot.digests)[:5]:
        assert curl(stage, [name], tmp_path, "differs/") == ({name: docroot.digests[name]}, 1)
    assert curl(stage, list(docroot.digests), tmp_path, "differs/") == (docroot.digests, 1)
    assert settled(stage)["divergences"] - before == 6  # one a connection


@pytest.mark.needs("nginx", "curl")
def test_large_file(web: tuple[Stage, Docroot], tmp_path: Path) -> None:
    """64 MiB through sendfile arrive whole."""
    stage, docroot = web
    name = f"{64 * MIB}.bin"
    started = time.monotonic()
    assert curl(stage, [name], tmp_path) == ({name: docroot.large}, 1)
    show(MB_per_s=round(64 * MIB / (time.monotonic() - started) / 1e6))


# --- redis


@pytest.fixture(scope="module")
def redis(calm: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """redis on both guests, without persistence."""
    folder = tmp_path_factory.mktemp("redis")
    argv = ["redis-server", "--bind", "* -::*", "--protected-mode", "no", "--save", "", "--appendonly", "no"]
    with replicated(calm, [*argv, "--dir", folder], port=6379, stdout=subprocess.DEVNULL):
        yield calm


def calls(stage: Stage, command: str) -> list[int]:
    """How often each replica has carried out a command; asked of each from within."""
    counted = []
    for namespace in (stage.srv_ns, stage.srv2_ns):
        stats = stage.run(namespace, ["redis-cli", "info", "commandstats"], timeout=20).stdout
        found = re.search(rf"cmdstat_{command}:calls=(\d+)", stats)
        counted.append(int(found[1]) if found else 0)
    return counted


@pytest.mark.needs("redis-server", "redis-benchmark", "redis-cli")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("clients", [1, 32])
@pytest.mark.parametrize("command", ["set", "get"])
def test_redis_benchmark(redis: Stage, command: str, clients: int) -> None:
    """20,000 commands are answered, both replicas carried out each of them, and nothing diverged."""
    before = calls(redis, command)
    argv = ["redis-benchmark", "-h", GUEST, "-t", command, "-n", "20000", "-c", str(clients), "--csv"]
    done = redis.run(redis.client_ns, argv, timeout=240)
    assert done.returncode == 0, done.stderr
    heads, row = (line.replace('"', "").split(",") for line in done.stdout.splitlines())
    figures = dict(zip(heads, row, strict=True))
    assert calls(redis, command) == [count + 20_000 for count in before]
    assert_protected(redis)
    show(command=command, clients=clients, rps=figures["rps"], p50_ms=figures["p50_latency_ms"])


# --- a session that idles


def test_idle_session(calm: Stage) -> None:
    """Keepalive probes of both sides cross an idle connection for 12 s, and it is still compared after them."""
    with answerers(calm, "--keepalive"), connect(calm, 7) as session:
        probe(session)
        assert ask(session, "before") == "before"
        before = settled(calm)
        time.sleep(12)
        probes = settled(calm)["primary_frames"] - before["primary_frames"]
        assert probes >= 8
        assert ask(session, "after") == "after"
        counted = assert_protected(calm)
        assert counted["unchecked"] - before["unchecked"] < 8  # ARP and the like
        show(frames_while_idle=probes)


# --- datagrams


@pytest.mark.needs("dig")
def test_dns(calm: Stage, tmp_path: Path) -> None:
    """500 questions of dig, each from a port of its own, are answered, and the answers compared."""
    names = [f"host{number}.example" for number in range(500)]
    (tmp_path / "questions").write_text("".join(f"{name} A\n" for name in names))
    servers = [
        calm.popen(namespace, [sys.executable, HERE / "nameserver.py"], stdout=subprocess.PIPE)
        for namespace in (calm.srv_ns, calm.srv2_ns)
    ]
    for server in servers:
        said(server)
    # One try a question: an answer that got lost is a failure.
    argv = ["dig", f"@{GUEST}", "+short", "+tries=1", "+timeout=10", "-f", tmp_path / "questions"]
    done = calm.run(calm.client_ns, argv, timeout=90)
    assert (done.returncode, done.stdout.splitlines()) == (0, [address_of(name) for name in names]), done.stderr
    counted = assert_protected(calm)
    show(questions=len(names), flows=calm.status("comparer")["flows"], released=counted["released"])
    end(*servers)


@pytest.mark.needs("ping")
@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
def test_ping(calm: Stage, network: str) -> None:
    """200 echo requests 10 ms apart are all answered, and the answers compared."""
    before = settled(calm)
    argv = ["ping", "-q", "-n", "-i", "0.01", "-c", "200", "-W", "20", ADDRESSES[network].guest]
    done = calm.run(calm.client_ns, argv, timeout=60)
    assert "200 packets transmitted, 200 received, 0% packet loss" in done.stdout, done.stdout
    assert assert_protected(calm)["primary_frames"] - before["primary_frames"] >= 200
    show(network=network, rtt=done.stdout.splitlines()[-1])
