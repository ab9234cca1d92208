"""The command `lockstep`: its exit codes as its help promises them, its JSON, and the processes that it starts."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
import zmq

import lockstep.capture.tap  # while it can be imported: `nobody` may not read the library
from lockstep import __version__, cli
from lockstep.control import ControlError, request

PATIENCE = 30.0
LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))

OK, USAGE, UNAVAILABLE, NOPERM, CONFIG = 0, 64, 69, 77, 78


class Done(NamedTuple):
    code: object
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture
def lockstep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run the command in this process."""
    for name in [name for name in os.environ if name.startswith("LOCKSTEP_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Done:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["/nowhere/lockstep", *map(str, arguments)])
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                cli.main()
        out, err = capsys.readouterr()
        return Done(end.value.code or 0, out, err)

    yield run
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def written(run_dir: Path) -> Callable[[str], Path]:
    """A configuration whose sockets lie in a folder of the test's own."""

    def write(text: str = "") -> Path:
        path = run_dir / "node.toml"
        path.write_text(f'run_dir = "{run_dir}/sockets"\n{text}')
        return path

    return write


def outside(**variables: str) -> dict[str, str]:
    """The environment of a child: no settings in it but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    return {**kept, **variables}


# 0, and what is printed.


def test_the_version(lockstep: Cli) -> None:
    assert lockstep("--version") == (OK, f"lockstep {__version__}\n", "")


def test_the_help_names_every_exit_code(lockstep: Cli) -> None:
    done = lockstep("--help")
    assert done.code == OK
    for code in ("0 ", "1 ", "64 ", "65 ", "69 ", "77 ", "78 "):
        assert code in done.out.split("Exit codes:")[1]


@pytest.mark.parametrize(
    "command", ["run", "up", "status", "failover", "checkpoint", "reload", "check-config", "keygen", "explain", "demo"]
)
def test_every_command_has_help(lockstep: Cli, command: str) -> None:
    done = lockstep(command, "--help")
    assert done.code == OK
    assert "Usage:" in done.out


def test_a_sound_configuration_is_fine(lockstep: Cli, written: Callable[[str], Path]) -> None:
    path = written("")
    assert lockstep("check-config", "-c", path) == (OK, f"{path}: fine\n", "")


def test_the_environment_alone_can_be_checked(lockstep: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_RUN_DIR", "/run/elsewhere")
    assert lockstep("check-config") == (OK, "the environment: fine\n", "")


def test_a_sound_configuration_as_json_is_every_setting(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("check-config", "--json", "-c", written("[comparer]\ncompare_timeout = 0.5\n"))
    said = json.loads(done.out)
    assert (done.code, done.err, said["ok"]) == (OK, "", True)
    assert said["config"]["comparer"]["compare_timeout"] == 0.5
    assert said["config"]["capture"] == "tap"


def test_faults_are_told_on_standard_error_with_78(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("check-config", "-c", written("[comparer]\ncompare_timout = 1\nmax_flows = 1\n"))
    assert (done.code, done.out) == (CONFIG, "")
    assert "comparer.compare_timout = 1: there is no such setting. Did you mean `compare_timeout`?" in done.err
    assert "comparer.max_flows = 1: out of range" in done.err


def test_faults_as_json_are_one_object(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("check-config", "--json", "-c", written("[comparer]\nmax_flows = 1\n"))
    assert (done.code, done.err) == (CONFIG, "")
    assert json.loads(done.out) == {
        "ok": False,
        "faults": [
            {
                "setting": "comparer.max_flows",
                "value": "1",
                "why": "out of range: 16 is the least",
                "way_out": "Choose 16 at least.",
            }
        ],
    }


def test_explain_lists_settings_with_default_and_meaning(lockstep: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = lockstep("check-config", "--explain")
    assert done.code == OK
    (line,) = [line for line in map(str.strip, done.out.splitlines()) if "comparer.compare_timeout" in line]
    assert line.split(None, 2)[1:] == ["3.0", "seconds a primary frame may wait for the secondary's"]


def test_the_configuration_may_be_named_by_the_environment(
    lockstep: Cli, written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("nonsense = 1\n")
    monkeypatch.setenv("LOCKSTEP_CONFIG", str(path))
    done = lockstep("check-config")
    assert done.code == CONFIG
    assert str(path) in done.err


def test_a_new_key_is_a_secret_file_and_a_public_line(lockstep: Cli, run_dir: Path) -> None:
    done = lockstep("keygen", run_dir / "key")
    assert (done.code, done.err) == (OK, "")
    assert zmq.curve_public((run_dir / "key").read_bytes().strip()).decode() == done.out.strip()
    assert stat.S_IMODE((run_dir / "key").stat().st_mode) == 0o600


# 64: wrong usage.


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["--dance"],
        ["run"],
        ["run", "dancer"],
        ["run", "mirror", "--capture", "net"],
        ["run", "mirror", "-c"],
        ["up", "mirror"],
        ["status", "--timeout", "0"],
        ["status", "--timeout", "soon"],
        ["status", "dancer"],
        ["failover", "now"],
        ["keygen"],
        ["check-config", "--jason"],
        ["demo", "--size", "much"],
        ["demo", "--scenario", "tragedy"],
        ["demo", "--repeat", "0"],
        ["explain", "--last", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_64(lockstep: Cli, arguments: list[str]) -> None:
    assert lockstep(*arguments).code == USAGE


def test_a_key_in_use_is_not_overwritten(lockstep: Cli, run_dir: Path) -> None:
    lockstep("keygen", run_dir / "key")
    before = (run_dir / "key").read_bytes()
    done = lockstep("keygen", run_dir / "key")
    assert (done.code, done.out) == (USAGE, "")
    assert f"{run_dir}/key exists" in done.err
    assert (run_dir / "key").read_bytes() == before


# 69: something is missing.


@pytest.mark.parametrize("command", ["failover", "checkpoint", "explain"])
def test_who_does_not_answer_is_69_and_named(lockstep: Cli, written: Callable[[str], Path], command: str) -> None:
    done = lockstep(command, "-c", written('services = ["comparer"]\n'), "--timeout", "0.1")
    assert (done.code, done.out) == (UNAVAILABLE, "")
    assert done.err.startswith("comparer: no answer from ipc://")
    assert "is the service running?" in done.err


def test_reload_of_what_does_not_run_is_69(lockstep: Cli, written: Callable[[str], Path]) -> None:
    assert lockstep("reload", "-c", written('services = ["comparer"]\n'), "--timeout", "0.1").code == UNAVAILABLE


def test_status_of_what_does_not_run_is_69_and_says_so_for_each(lockstep: Cli, written: Callable[[str], Path]) -> None:
    path = written("")
    done = lockstep("status", "--json", "-c", path, "--timeout", "0.1")
    said = json.loads(done.out)
    assert done.code == UNAVAILABLE
    assert set(said) == {"mirror", "redirector", "rewriter", "comparer"}
    assert all("no answer" in answer["error"] for answer in said.values())
    done = lockstep("status", "comparer", "-c", path, "--timeout", "0.1")
    assert done.code == UNAVAILABLE
    assert "comparer" in done.out


@pytest.mark.parametrize("command", ["status", "failover", "checkpoint"])
def test_a_missing_key_is_69_with_a_way_out(lockstep: Cli, written: Callable[[str], Path], command: str) -> None:
    peer = zmq.curve_keypair()[0].decode()
    text = f'services = ["comparer"]\n[security]\nsecret_key = "/nowhere/key"\npeers = ["{peer}"]\n'
    done = lockstep(command, "-c", written(text))
    assert done.code == UNAVAILABLE
    assert "lockstep keygen" in (done.out + done.err).replace("\n", " ")


def test_a_service_whose_key_is_missing_is_69(lockstep: Cli, written: Callable[[str], Path]) -> None:
    peer = zmq.curve_keypair()[0].decode()
    text = f'[security]\nsecret_key = "/nowhere/key"\npeers = ["{peer}"]\n'
    done = lockstep("run", "comparer", "-c", written(text))
    assert done.code == UNAVAILABLE
    assert "security.secret_key = /nowhere/key" in done.err


def test_a_port_that_can_not_be_had_is_69(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("run", "mirror", "-c", written(""), "--capture", "memory")
    assert done.code == UNAVAILABLE
    assert done.err.startswith("can't start: mirror.network: ")


def test_a_link_that_can_not_be_connected_is_69(lockstep: Cli, written: Callable[[str], Path], run_dir: Path) -> None:
    text = '[links]\nreleased = "tcp://*:5000"\n[security]\ninsecure = true\n'
    done = lockstep("run", "comparer", "-c", written(text))
    assert done.code == UNAVAILABLE
    assert "links.released can't connect to tcp://*:5000" in done.err


def test_a_run_dir_that_is_a_file_is_69(lockstep: Cli, written: Callable[[str], Path], run_dir: Path) -> None:
    path = written("")
    (run_dir / "sockets").write_text("")
    done = lockstep("run", "comparer", "-c", path)
    assert done.code == UNAVAILABLE
    assert "run_dir" in done.err


def test_a_cpu_that_is_not_there_is_69_and_the_others_are_named(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("run", "comparer", "-c", written("[cpus]\ncomparer = 1023\n"))
    assert done.code == UNAVAILABLE
    assert done.err.startswith("can't start: cpus = 1023 for comparer: ")
    assert f"name one of {', '.join(map(str, sorted(os.sched_getaffinity(0))))}" in done.err


# 77: not permitted.


@pytest.mark.root
def test_a_tap_device_that_may_not_be_opened_is_77(
    lockstep: Cli, written: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    path = written('[mirror.network]\ndevice = "ls-test0"\n[mirror.guest]\ndevice = "ls-test1"\n')
    request.getfixturevalue("nobody")
    done = lockstep("run", "mirror", "-c", path)
    assert done.code == NOPERM
    assert done.err.startswith("not permitted: mirror.network")


def test_a_run_dir_that_may_not_be_written_is_77(
    lockstep: Cli, written: Callable[[str], Path], run_dir: Path, request: pytest.FixtureRequest
) -> None:
    path = written("")
    run_dir.chmod(0o555)
    request.getfixturevalue("nobody")
    done = lockstep("run", "comparer", "-c", path)
    assert "run_dir" in done.err
    assert done.code == NOPERM


def test_a_key_that_may_not_be_read_is_77(
    lockstep: Cli, written: Callable[[str], Path], run_dir: Path, request: pytest.FixtureRequest
) -> None:
    public = lockstep("keygen", run_dir / "key").out.strip()
    path = written(f'[security]\nsecret_key = "{run_dir}/key"\npeers = ["{public}"]\n')
    (run_dir / "key").chmod(0)
    request.getfixturevalue("nobody")
    done = lockstep("run", "comparer", "-c", path)
    assert f"{run_dir}/key: Permission denied" in done.err
    assert "keygen" not in done.err  # there is a key
    assert done.code == NOPERM


def test_a_key_in_a_folder_that_may_not_be_written_is_77(
    lockstep: Cli, run_dir: Path, request: pytest.FixtureRequest
) -> None:
    run_dir.chmod(0o555)
    request.getfixturevalue("nobody")
    done = lockstep("keygen", run_dir / "key")
    assert done.code == NOPERM
    assert "Permission denied" in done.err


# 78: bad configuration.


@pytest.mark.parametrize(
    "command", ["run mirror", "up", "status", "failover", "checkpoint", "reload", "check-config", "explain"]
)
def test_a_bad_configuration_is_78_everywhere(lockstep: Cli, written: Callable[[str], Path], command: str) -> None:
    done = lockstep(*command.split(), "-c", written("nonsense = 1\n"))
    assert (done.code, done.out) == (CONFIG, "")
    assert "nonsense = 1: there is no such setting" in done.err


@pytest.mark.parametrize("command", ["run mirror", "up", "status", "check-config"])
def test_a_missing_configuration_is_78(lockstep: Cli, run_dir: Path, command: str) -> None:
    done = lockstep(*command.split(), "-c", run_dir / "missing.toml")
    assert done.code == CONFIG
    assert f"{run_dir}/missing.toml" in done.err


def test_a_service_without_its_settings_is_78(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("run", "mirror", "-c", written(""))
    assert done.code == CONFIG
    assert "mirror.network.device: missing" in done.err
    assert "mirror.guest.device: missing" in done.err


def test_a_node_without_services_can_not_be_brought_up(lockstep: Cli, written: Callable[[str], Path]) -> None:
    done = lockstep("up", "-c", written(""))
    assert done.code == CONFIG
    assert "services" in done.err


# `python -m services.NAME` and `lockstep run NAME`.

WAYS = [[LOCKSTEP, "run", "mirror"], [sys.executable, "-m", "services.mirror"]]

BOTH_PCAP = """
[mirror.network]
write = "{0}/network.pcap"
[mirror.guest]
write = "{0}/guest.pcap"
"""


def both(arguments: list[str], **environ: str) -> list[Done]:
    """What both ways of running the mirror come to, side by side."""
    children = [
        subprocess.Popen(
            [*way, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside(**environ)
        )
        for way in WAYS
    ]
    outputs = [child.communicate(timeout=PATIENCE) for child in children]
    return [Done(child.returncode, *output) for child, output in zip(children, outputs, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], CONFIG, "mirror.network.device: missing"),
        (["--capture", "memory"], UNAVAILABLE, "can't start: mirror.network"),
        (["-c", "/nowhere/node.toml"], CONFIG, "/nowhere/node.toml"),
    ],
)
def test_both_ways_say_and_return_the_same(arguments: list[str], code: int, text: str) -> None:
    run, module = both(arguments)
    assert run == module
    assert (run.code, run.out) == (code, "")
    assert text in run.err


@pytest.mark.parametrize("arguments", [["--capture", "net"], ["--dance"], ["two"]])
def test_both_ways_refuse_the_same_arguments(arguments: list[str]) -> None:
    assert [done.code for done in both(arguments)] == [USAGE, USAGE]


def test_both_ways_read_the_configuration_that_the_environment_names(run_dir: Path) -> None:
    (run_dir / "node.toml").write_text("nonsense = 1\n")
    run, module = both([], LOCKSTEP_CONFIG=f"{run_dir}/node.toml")
    assert run == module
    assert run.code == CONFIG
    assert f"{run_dir}/node.toml: " in run.err


def until(done: Callable[[], object], *children: subprocess.Popen[Any]) -> None:
    """Wait for something that these processes bring about."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        assert all(child.poll() is None for child in children), "a process ended too early"
        time.sleep(0.02)


def answers(endpoint: str) -> dict[str, Any] | None:
    try:
        return request(endpoint, "status", 0.2)
    except ControlError:
        return None


@pytest.mark.parametrize("way", WAYS, ids=["run", "module"])
def test_a_service_runs_until_it_is_told_to_stop(way: list[str], written: Callable[[str], Path], run_dir: Path) -> None:
    """Its lines are JSON, one for its start and one for its end; its end is 0."""
    path = written(BOTH_PCAP.format(run_dir))
    command = [*way, "-c", str(path), "--capture", "pcap"]
    endpoint = f"ipc://{run_dir}/sockets/mirror.control"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=outside()) as child:
        try:
            until(lambda: answers(endpoint), child)
            said = answers(endpoint)
            assert said is not None
            assert (said["service"], said["pid"]) == ("mirror", child.pid)
            second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=outside())
            assert second.returncode == UNAVAILABLE
            assert second.stderr.startswith("can't start: ")
            assert "already bound by another process" in second.stderr
            child.send_signal(signal.SIGTERM)
            _, err = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    assert child.returncode == OK
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert [event for event in events if event != "build_is_slow"] == ["service_started", "service_stopped"]


# A whole node.


class Up(NamedTuple):
    path: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """All four services of a node, whose ports are files, brought up by `lockstep up`."""
    folder = tmp_path_factory.mktemp("up")
    path = folder / "node.toml"
    sections = [
        f'[{port}]\nwrite = "{folder}/{port}.pcap"\n'
        for port in ("mirror.network", "mirror.guest", "redirector.uplink", "rewriter.guest")
    ]
    services = 'services = ["mirror", "redirector", "rewriter", "comparer"]\n'
    path.write_text(f'node = "all"\nrun_dir = "{folder}/s"\ncapture = "pcap"\n{services}' + "".join(sections))
    command = [LOCKSTEP, "up", "-c", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=outside()) as process:
        try:
            for name in ("mirror", "redirector", "rewriter", "comparer"):
                until(lambda name=name: answers(f"ipc://{folder}/s/{name}.control"), process)  # type: ignore[misc]
            yield Up(path, process)
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def test_status_as_json_is_one_object_by_service(lockstep: Cli, up: Up) -> None:
    done = lockstep("status", "--json", "-c", up.path)
    said = json.loads(done.out)
    assert (done.code, done.err) == (OK, "")
    assert list(said) == ["mirror", "redirector", "rewriter", "comparer"]
    for name, answer in said.items():
        assert (answer["service"], answer["node"]) == (name, "all")
        assert {"pid", "epoch", "uptime_s", "counters", "links", "ports", "control"} <= set(answer)
    assert len({answer["pid"] for answer in said.values()}) == 4


def test_status_of_one_service_asks_it_alone(lockstep: Cli, up: Up) -> None:
    assert set(json.loads(lockstep("status", "comparer", "--json", "-c", up.path).out)) == {"comparer"}


def test_status_for_people_is_a_line_for_each_service(lockstep: Cli, up: Up) -> None:
    done = lockstep("status", "-c", up.path)
    assert done.code == OK
    first_words = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert [word for word in first_words if word in ("mirror", "redirector", "rewriter", "comparer")] == [
        "mirror", "redirector", "rewriter", "comparer",
    ]  # fmt: skip


def test_a_checkpoint_can_be_asked_for(lockstep: Cli, up: Up) -> None:
    done = lockstep("checkpoint", "--json", "-c", up.path)
    assert done.code == OK
    assert json.loads(done.out)["requested"] is True
    assert lockstep("checkpoint", "-c", up.path).out == "a checkpoint was asked for\n"


def test_reload_asks_every_service_of_the_node(lockstep: Cli, up: Up) -> None:
    done = lockstep("reload", "-c", up.path)
    assert (done.code, done.err) == (OK, "")
    assert done.out.split() == [
        "mirror:", "reloaded", "redirector:", "reloaded", "rewriter:", "reloaded", "comparer:", "reloaded",
    ]  # fmt: skip


def test_without_a_divergence_there_is_nothing_to_explain(lockstep: Cli, up: Up) -> None:
    assert lockstep("explain", "-c", up.path) == (OK, "no divergence\n", "")
    assert json.loads(lockstep("explain", "--json", "-c", up.path).out) == {"divergences": []}


def test_failover_is_the_secondarys_where_a_node_has_both(lockstep: Cli, up: Up) -> None:
    done = lockstep("failover", "--json", "-c", up.path)
    assert done.code == OK
    assert json.loads(done.out) == {"survivor": "secondary", "epoch": 0}
    assert lockstep("failover", "-c", up.path).out == "the secondary goes on alone, epoch 0\n"
    assert json.loads(lockstep("status", "redirector", "--json", "-c", up.path).out)["redirector"]["speaking"] is True


def test_a_refusal_is_64_with_the_services_words(lockstep: Cli, up: Up) -> None:
    """The file became faulty for the service alone: the command itself reads a sound one."""
    text = up.path.read_text()
    up.path.write_text(text + "nonsense = 1\n")
    other = up.path.with_name("other.toml")
    other.write_text(text)
    try:
        done = lockstep("reload", "-c", other)
    finally:
        up.path.write_text(text)
    assert (done.code, done.out) == (USAGE, "")
    assert done.err.startswith("mirror: ")
    assert "nonsense" in done.err


def test_up_ends_with_0_when_it_is_told_to_and_leaves_nobody(lockstep: Cli, up: Up) -> None:
    """The last test of this node."""
    pids = [answer["pid"] for answer in json.loads(lockstep("status", "--json", "-c", up.path).out).values()]
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(PATIENCE) == OK
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_where_one_service_ends_up_ends_with_its_code(written: Callable[[str], Path], run_dir: Path) -> None:
    path = written('services = ["comparer", "mirror"]\n')
    command = [LOCKSTEP, "up", "-c", str(path), "--capture", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=outside())
    assert done.returncode == UNAVAILABLE
    assert "can't start: mirror.network" in done.stderr
    assert answers(f"ipc://{run_dir}/sockets/comparer.control") is None


def test_a_file_called_services_where_up_is_started_hides_nothing(
    written: Callable[[str], Path], run_dir: Path
) -> None:
    (run_dir / "services.py").write_text("raise SystemExit('the wrong services')\n")
    command = [LOCKSTEP, "up", "-c", str(written('services = ["mirror"]\n')), "--capture", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=outside(), cwd=run_dir)
    assert done.returncode == UNAVAILABLE
    assert "the wrong services" not in done.stderr


# Fused services.


@pytest.fixture
def fused(written: Callable[[str], Path], run_dir: Path) -> Path:
    """A node of three processes, whose ports are files."""
    ports = ("mirror.network", "mirror.guest", "redirector.uplink", "rewriter.guest")
    sections = "".join(f'[{port}]\nwrite = "{run_dir}/{port}.pcap"\n' for port in ports)
    services = 'services = ["mirror", "redirector", "rewriter", "comparer"]\n'
    return written(f'capture = "pcap"\n{services}fuse = ["redirector", "rewriter"]\n{sections}')


def test_up_runs_a_process_for_each_group_and_every_service_answers_for_itself(
    lockstep: Cli, fused: Path, run_dir: Path
) -> None:
    with subprocess.Popen([LOCKSTEP, "up", "-c", str(fused)], stderr=subprocess.PIPE, text=True, env=outside()) as up:
        try:
            until(lambda: lockstep("status", "-c", fused, "--timeout", "0.5").code == OK, up)
            said = json.loads(lockstep("status", "--json", "-c", fused).out)
            assert {name: answer["service"] for name, answer in said.items()} == {name: name for name in said}
            assert said["redirector"]["pid"] == said["rewriter"]["pid"]
            assert len({answer["pid"] for answer in said.values()}) == 3
            assert [said[name]["fused"] for name in ("mirror", "rewriter")] == [[], ["redirector", "rewriter"]]
            assert not (run_dir / "sockets" / "to_guest").exists()
        finally:
            up.terminate()
            up.communicate(timeout=PATIENCE)
    assert up.returncode == OK


@pytest.mark.parametrize("words", [["run", "rewriter"], ["run", "mirror", "comparer"]])
def test_run_takes_what_is_named_and_what_is_fused_with_it(lockstep: Cli, fused: Path, words: list[str]) -> None:
    with subprocess.Popen(
        [LOCKSTEP, *words, "-c", str(fused)], stderr=subprocess.PIPE, text=True, env=outside()
    ) as run:
        try:
            name = words[-1]
            until(lambda: lockstep("status", name, "-c", fused, "--timeout", "0.5").code == OK, run)
            answer = json.loads(lockstep("status", name, "--json", "-c", fused).out)[name]
        finally:
            run.terminate()
            run.communicate(timeout=PATIENCE)
    assert answer["fused"] == (["redirector", "rewriter"] if name == "rewriter" else ["mirror", "comparer"])


# Many guests.


def test_each_guest_of_a_comparer_has_its_line_and_is_commanded_by_name(
    lockstep: Cli, written: Callable[[str], Path], run_dir: Path
) -> None:
    tables = "".join(f'[[guests]]\nname = "{name}"\nreleased = "ipc://{run_dir}/{name}"\n' for name in ("web", "db"))
    path = written(f'services = ["comparer"]\n{tables}')
    with subprocess.Popen([LOCKSTEP, "up", "-c", str(path)], stderr=subprocess.PIPE, text=True, env=outside()) as up:
        try:
            until(lambda: lockstep("status", "-c", path, "--timeout", "0.5").code == OK, up)
            shown = lockstep("status", "-c", path).out
            assert [line.split()[0] for line in shown.splitlines()[1:]] == ["comparer", "web", "db"]
            assert lockstep("checkpoint", "-c", path).code == USAGE
            asked = lockstep("checkpoint", "--guest", "web", "--json", "-c", path)
            assert json.loads(asked.out) == {"guest": "web", "requested": True}
            gone = lockstep("failover", "--guest", "db", "-c", path)
            assert gone.out == "the primary goes on alone, epoch 0\n"
            assert lockstep("failover", "--guest", "nobody", "-c", path).err.startswith("comparer: ")
            said = json.loads(lockstep("status", "--json", "-c", path).out)["comparer"]["guests"]
            assert said["web"]["counters"] == {"checkpoint_requests": 1}
            assert lockstep("explain", "-c", path).out == "no divergence\n"
            assert lockstep("reload", "-c", path).out == "comparer: reloaded\n"
        finally:
            up.terminate()
            up.communicate(timeout=PATIENCE)


# Control over tcp.


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_control_socket_bound_to_every_address_is_reached_with_the_nodes_own_key(
    lockstep: Cli, written: Callable[[str], Path], run_dir: Path
) -> None:
    lockstep("keygen", run_dir / "key")
    peer = zmq.curve_keypair()[0].decode()
    path = written(
        f'services = ["comparer"]\n[control]\ncomparer = "tcp://*:{free_port()}"\n'
        f'[security]\nsecret_key = "{run_dir}/key"\npeers = ["{peer}"]\n'
    )
    command = [sys.executable, "-m", "services.comparer", "-c", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=outside()) as child:
        try:
            until(lambda: lockstep("status", "-c", path, "--timeout", "0.5").code == OK, child)
        finally:
            child.kill()
            child.communicate()
