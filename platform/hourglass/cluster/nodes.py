"""Ray nodes on this machine: the head of a cluster, or a node that joins one; secured by a token.

A project has at most one node on a machine, recorded in `<home>/cluster.json`.
"""

import ipaddress
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from pydantic import ValidationError

from hourglass import ray_internals, storage
from hourglass.cluster import certificates, daemons, labels, tokens
from hourglass.cluster.connect import ray_environment, refresh_ray, temp_dir
from hourglass.cluster.daemons import START_S, Daemon
from hourglass.cluster.probe import check_dashboard, check_head, is_loopback
from hourglass.errors import ClusterError, first_line
from hourglass.process import LOOPBACK, deferred, free_port, require_free
from hourglass.settings import Settings
from hourglass.strict import Strict

WORKER_PORTS = range(10002, 20000)  # Ray assigns these to workers


class Node(Strict):
    """A node on this machine, as recorded in `<home>/cluster.json`.

    `address` and `dashboard` are those of the cluster's head, `host` is this machine's address.
    """

    address: str
    dashboard: str
    secure: bool
    host: str = LOOPBACK
    head: bool = True
    tls: bool = False
    daemons: tuple[Daemon, ...]

    @property
    def dead(self) -> tuple[Daemon, ...]:
        """The daemons that no longer run."""
        return tuple(daemon for daemon in self.daemons if daemons.running(daemon) is None)


def start(
    settings: Settings,
    *,
    host: str = LOOPBACK,
    cpus: int | None = None,
    gpus: int | None = None,
    node_labels: Mapping[str, str] | None = None,
    port: int = 6379,
    dashboard_port: int = 8265,
    insecure: bool = False,
    tls: bool = False,
) -> Node:
    """Start a head node on this machine and wait until it accepts jobs.

    It listens on loopback, or for other machines if `host` is an address of this one. With `tls`, nodes
    need a certificate, and the dashboard, which has no TLS, stays on loopback.
    Raises: ClusterError if it would be open without `insecure`, a node is already up, a port is in
    use, or Ray does not start.
    """
    host = _own_address("--host", host)
    if insecure and not is_loopback(host):
        raise ClusterError(
            f"--insecure with --host {host}: everybody on that network could run code as you; "
            "--insecure is allowed on loopback only"
        )
    _require_none(settings)
    address, shown = f"{host}:{port}", LOOPBACK if tls else host
    _check_port("--port", host, port)
    _check_port("--dashboard-port", shown, dashboard_port)
    environment = _environment(settings, None, host=host, insecure=insecure)
    if tls:
        certificates.prepare(settings.root, address)
        environment |= certificates.environment(settings.root, address)
    else:
        certificates.forget(settings.root, address)
    command = [f"--port={port}", f"--dashboard-host={shown}", f"--dashboard-port={dashboard_port}"]
    command += ["--head", "--include-dashboard=true"]
    # With Ray's fixed default, a second head could not start on this machine.
    command += [f"--ray-client-server-port={free_port(WORKER_PORTS)}"]
    command += _resources(cpus, gpus, node_labels)
    node = Node(
        address=address,
        dashboard=f"http://{shown}:{dashboard_port}",
        secure=not insecure,
        host=host,
        tls=tls,
        daemons=(),
    )

    def check() -> None:
        check_dashboard(node.dashboard, environment)

    return _launch(settings, node, command, environment, check)


def join(
    settings: Settings,
    address: str,
    *,
    host: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    node_labels: Mapping[str, str] | None = None,
    token_file: Path | None = None,
    certificate: Path | None = None,
) -> Node:
    """Make this machine a node of the cluster whose head is at `address`, and wait until it is.

    `host` is the address of this machine for the others; default: the one that routes to the head.
    A token in `token_file` becomes the token of this project. A cluster with TLS needs the
    `certificate` that its head made for this machine.
    Raises: ClusterError if the head does not respond or accept token and certificate, its versions
    differ, or a node is already up.
    """
    _require_none(settings)
    if is_loopback(address):
        raise ClusterError(
            f"address {address}: a head on loopback cannot be reached from other machines; start it "
            "with `hourglass cluster start --host ADDRESS` and join that address"
        )
    if token_file is not None:
        _install_token(token_file, settings.root / tokens.RAY_TOKEN)
    host = _own_address("--host", host or _route(address))
    if certificate is not None:
        certificates.install(settings.root, address, certificate, host)
    environment = _environment(settings, address)
    os.environ.update(ray_environment(settings, address))
    ray_internals.require_tested_version()
    refresh_ray()
    check_head(address)
    found = ray_internals.nodes(address)
    head = next((node for node in found if node.head and node.alive), None)
    labels.require_same_versions(
        f"address {address}", labels.versions_in(head.labels if head else {})
    )
    taken = [node for node in found if node.alive and node.host == host]
    if taken:
        raise ClusterError(
            f"--host {host}: the cluster at {address} already has a node with this address"
        )
    node = Node(
        address=address,
        dashboard=f"http://{ray_internals.dashboard(address) or address}",
        secure=environment["RAY_AUTH_MODE"] == "token",
        host=host,
        head=False,
        tls="RAY_USE_TLS" in environment,
        daemons=(),
    )

    def check() -> None:
        alive = [each.host for each in ray_internals.nodes(address) if each.alive]
        if host not in alive:
            raise ClusterError(f"{address} does not list {host} as a node yet")

    command = [f"--address={address}", *_resources(cpus, gpus, node_labels)]
    return _launch(settings, node, command, environment, check)


def stop(settings: Settings) -> Node | None:
    """Stop the recorded node and all its processes, and no others; None if there is none."""
    node = find(settings)
    if node is not None:
        daemons.end(daemons.family(node.daemons))
        _record(settings).unlink(missing_ok=True)
    return node


def leave(settings: Settings) -> Node:
    """Stop the node that this machine joined with. Raises ClusterError on the head, or without one."""
    node = find(settings)
    if node is None:
        raise ClusterError(f"{settings.root}: this project is not a node of a cluster")
    if node.head:
        raise ClusterError(
            "this machine is the head of the cluster; `hourglass cluster stop` ends the whole cluster"
        )
    stop(settings)
    return node


def find(settings: Settings) -> Node | None:
    """The node recorded in the project folder, running or not. Raises ClusterError."""
    try:
        return Node.model_validate_json(_record(settings).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{_record(settings)}: not a record of a cluster ({first_line(error)}); "
            "stop the head's processes yourself and remove the file"
        ) from None


def _launch(
    settings: Settings,
    node: Node,
    arguments: Sequence[str],
    environment: dict[str, str],
    check: Callable[[], None],
) -> Node:
    """Run `ray start` and wait until `check` raises no ClusterError; the node with its daemons."""
    tokens.private_folder(settings.root)
    folder = temp_dir(settings)
    log = folder.parent / "start.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
    command += [f"--node-ip-address={node.host}", f"--temp-dir={folder}", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_port(WORKER_PORTS)}"]
    leader = daemons.open_session(command, environment, log)
    try:
        node = node.model_copy(update={"daemons": daemons.launched(leader, log)})
        storage.write(str(_record(settings)), node.model_dump_json(indent=1).encode())
        _record(settings).chmod(0o600)  # `stop` terminates the processes in it
        _wait(node, check, folder)
    except BaseException:  # including Ctrl-C: `stop` cannot find unrecorded processes
        with deferred():
            daemons.end(daemons.session(leader.pid))
            _record(settings).unlink(missing_ok=True)
        raise
    return node


def _wait(node: Node, check: Callable[[], None], folder: Path) -> None:
    """Wait until `check` raises no ClusterError. Raises ClusterError."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return check()
        except ClusterError as error:
            if time.monotonic() > deadline or node.dead:
                raise ClusterError(
                    f"the {'head' if node.head else 'node'} did not come up ({error}); its logs are "
                    f"in {folder}/session_latest/logs"
                ) from None
        time.sleep(0.3)


def _record(settings: Settings) -> Path:
    return settings.root / "cluster.json"


def _require_none(settings: Settings) -> None:
    """Raise ClusterError if a node of this project runs."""
    known = find(settings)
    if known is not None and len(known.dead) < len(known.daemons):
        what = "the cluster" if known.head else f"a node of the cluster at {known.address}"
        end = "stop" if known.head else "leave"
        raise ClusterError(
            f"{what} of {settings.root} is already up at {known.dashboard}; "
            f"stop it with `hourglass cluster {end}` first"
        )


def _environment(
    settings: Settings, address: str | None, *, host: str = LOOPBACK, insecure: bool = False
) -> dict[str, str]:
    """The node's environment, which jobs inherit. Raises ClusterError if it would be open."""
    own = ray_environment(settings, address, host=host, insecure=insecure)
    environment = {**os.environ, **own}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HOURGLASS_ADDRESS"):
        environment.pop(name, None)
    # A job starts in another folder with the node's PATH, and must find this `hourglass` and the
    # project folder.
    binaries = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    environment["HOURGLASS_HOME"] = str(settings.root)
    return environment


def _resources(
    cpus: int | None, gpus: int | None, node_labels: Mapping[str, str] | None
) -> list[str]:
    """Options of `ray start` for what a node offers."""
    options = [labels.option(node_labels or {})]
    options += [f"--num-cpus={cpus}"] if cpus is not None else []
    options += [f"--num-gpus={gpus}"] if gpus is not None else []
    return options


def _own_address(option: str, host: str) -> str:
    """`host` as an IP address of this machine. Raises ClusterError."""
    own = {each.address for found in psutil.net_if_addrs().values() for each in found}
    addresses = sorted(each for each in own if _is_ipv4(each))
    try:
        address = host if _is_ipv4(host) else socket.gethostbyname(host)
    except OSError:
        address = host
    if address not in addresses:
        raise ClusterError(
            f"{option} {host}: not an address of this machine; found {', '.join(addresses)}"
        )
    return address


def _is_ipv4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False


def _route(address: str) -> str:
    """This machine's address on the way to `address`. Raises ClusterError."""
    host, _, port = address.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect((host, int(port)))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ClusterError(f"address {address}: no route ({error.strerror})") from None


def _install_token(source: Path, target: Path) -> None:
    """Make the token in `source` that of this project. Raises ClusterError if it has another."""
    token = tokens.read_token(source)
    tokens.private_folder(target.parent)
    if not target.exists():
        tokens.write_token(target, token)
    if not secrets.compare_digest(tokens.read_token(target), token):
        raise ClusterError(
            f"--token-file {source}: {target} holds another token; set HOURGLASS_HOME to another "
            "project folder, or remove that file"
        )


def _check_port(option: str, host: str, port: int) -> None:
    """Raise ClusterError unless `port` is allowed and free on `host`."""
    if not 1024 <= port <= 65535 or port in WORKER_PORTS:
        raise ClusterError(
            f"{option} {port}: allowed are 1024 to 10001 and 20000 to 65535 "
            "(Ray reserves 10002 to 19999 for its workers)"
        )
    require_free(host, port, option, f"choose another port with {option}")
