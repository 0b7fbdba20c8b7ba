"""Machines that are apart: network namespaces with addresses of their own, joined by a switch.

Each has its own loopback, its own project folder and a folder that no other machine sees. Needs root
and Debian's iproute2.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

HOURGLASS = [sys.executable, "-m", "hourglass.cli"]
SUBNET = "10.77.0"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def require_namespaces() -> None:
    """Skip the module where network namespaces cannot be made."""
    name = f"hg{os.getpid()}try"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("machines that are apart need root and iproute2", allow_module_level=True)
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}", allow_module_level=True)
    _ip("netns", "delete", name)


@dataclass(frozen=True)
class Machine:
    """A host of its own: `ip` on the network, `home` for hourglass, `disk` that only it sees."""

    name: str
    ip: str
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def disk(self) -> Path:
        return self.folder.parent / "disk"

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "HOURGLASS_", "MLFLOW_", "AWS_"))
        }
        # Short: Ray makes sockets below.
        own = {"HOURGLASS_HOME": str(self.home), "HOURGLASS_TEMP_DIR": str(self.folder / "t")}
        return {**kept, **own, "OMP_NUM_THREADS": "1"}

    def command(self, *arguments: str) -> list[str]:
        """A command on this machine: in its network, with its own disk mounted."""
        own = self.folder / "disk"
        own.mkdir(exist_ok=True)
        mount = f'mount --bind {own} {self.disk} && exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "-m",
            "sh",
            "-c",
            mount,
            "sh",
            *arguments,
        ]

    def run(
        self, *arguments: str, timeout_s: float = 180, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run `hourglass ARGUMENTS` here."""
        return self.execute(*HOURGLASS, *arguments, timeout_s=timeout_s, **variables)

    def execute(
        self, *arguments: str, timeout_s: float = 180, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run any command here."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def processes(self) -> list[psutil.Process]:
        """The processes on this machine."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just exited
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """End every process on this machine, as a power cut does."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start any command here, with its output in a pipe."""
        return subprocess.Popen(
            self.command(*arguments),
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextlib.contextmanager
    def serving(self, port: int, *arguments: str, **variables: str) -> Iterator[None]:
        """A server on this machine, once it listens; its output is dropped, so that no pipe fills."""
        process = subprocess.Popen(
            self.command(*arguments),
            env={**self.environment, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while f":{port} " not in self.execute("ss", "-Hltn").stdout:
            assert process.poll() is None
            time.sleep(0.2)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def captured(machine: Machine, file: Path) -> Iterator[None]:
    """Everything that crosses the machine's network in the block, as a capture in `file`."""
    command = [
        "ip",
        "netns",
        "exec",
        machine.name,
        "tcpdump",
        "-i",
        "eth0",
        "--immediate-mode",
        "-U",
        "-s",
        "0",
        "-w",
    ]
    tool = subprocess.Popen([*command, str(file)], stderr=subprocess.PIPE, text=True)
    assert tool.stderr is not None
    for line in tool.stderr:
        if "listening on" in line:
            break
    try:
        yield
    finally:
        tool.terminate()
        tool.communicate(timeout=10)


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """`count` machines on one network that reaches nothing else; their clusters end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="hgm", dir="/tmp"))
    (folder / "disk").mkdir()
    prefix, made = f"hg{os.getpid()}", []
    switch = f"{prefix}s"
    _ip("netns", "add", switch)
    try:
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            machine = Machine(f"{prefix}m{number}", f"{SUBNET}.{number}", folder / str(number))
            machine.folder.mkdir()
            _ip("netns", "add", machine.name)
            made.append(machine)
            port = f"p{number}"
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip(
                "-n",
                switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                machine.name,
            )
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", machine.name, "address", "add", f"{machine.ip}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
            _ip("-n", machine.name, "route", "add", "default", "via", machine.ip)
        yield made
    finally:
        for machine in reversed(made):
            machine.kill()
            _ip("netns", "delete", machine.name)
        _ip("netns", "delete", switch)
        shutil.rmtree(folder, ignore_errors=True)
