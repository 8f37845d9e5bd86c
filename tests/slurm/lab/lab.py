"""A private Slurm cluster on this machine, for tests: real daemons on loopback, without root or systemd, in one folder.

python tests/slurm/lab/lab.py install       Debian packages, as root; a no-op where they are there
python tests/slurm/lab/lab.py up            starts one and says how to talk to it; `down FOLDER` stops it
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
PREFIX = "qdexp-slurm-"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
ACCOUNTING = ("slurmdbd", "sacct", "mariadbd", "mariadb-install-db")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurmdbd", "slurm-client", "mariadb-server")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MYSQL = """
[mariadbd]
user={user}
datadir={root}/mysql
socket={root}/mysql.sock
pid-file={root}/pid/mariadbd.pid
log-error={root}/log/mariadbd.log
skip-networking
skip-name-resolve
skip-log-bin
performance_schema=OFF
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
innodb_doublewrite=0
"""
SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
LogFile={root}/log/slurmdbd.log
PidFile={root}/pid/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm_acct_db
"""
ACCOUNTED = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={root}/munge/socket"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in (*PROGRAMS, *ACCOUNTING) if shutil.which(name, path=PATH) is None]


def install() -> None:
    """Installs the packages (Debian 12 or later), without starting the services that come with them."""
    if not missing():
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *command], env=environment, check=True)
    finally:
        if ours:
            policy.unlink()


def clean_environment() -> dict[str, str]:
    """This process's, without what a Slurm job around it would have set."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return {**ours, "PATH": PATH}


class Lab:
    """A running cluster: two nodes with ``cpus`` each, the partitions main and preemptible, accounting if it is wanted.

    ``largest_array``, ``most_jobs``: MaxArraySize and MaxJobCount, by default those of Slurm.
    """

    def __init__(self, accounting: bool = True, largest_array: int = 1001, cpus: int = 8, most_jobs: int = 10_000) -> None:
        # not pytest's tmp_path: munged wants every parent of its socket to be passable, and socket paths are short
        self.base = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.base.chmod(0o711)
        (self.base / "owner").write_text(str(os.getpid()))
        self.root, self.conf = self.base / "c", self.base / "c" / "etc" / "slurm.conf"
        self.nodes, self.user = ("n1", "n2"), subprocess.check_output(["id", "-un"], text=True).strip()
        self.environment = {**clean_environment(), "SLURM_CONF": str(self.conf)}
        try:
            self._configure(accounting, largest_array, cpus, most_jobs)
            self._start(accounting)
        except BaseException:
            self.down()
            raise

    def _configure(self, accounting: bool, largest_array: int, cpus: int, most_jobs: int) -> None:
        for name in ("etc", "state", "spool", "log", "pid", "munge", "mysql"):
            (self.root / name).mkdir(parents=True)
        controller, database, *daemons = _free_ports(2 + len(self.nodes))
        port = {"root": self.root, "user": self.user, "port": database}
        lines = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={own} CPUs={cpus} RealMemory=16000 Gres=gpu:2"
            for name, own in zip(self.nodes, daemons, strict=True)
        ]
        text = Template((HERE / "slurm.conf").read_text()).substitute(
            root=self.root,
            user=self.user,
            controller_port=controller,
            first_job=time.time_ns() // 10**9 % 600_000 * 100 + 1,
            largest_array=largest_array,
            most_jobs=most_jobs,
            accounting=ACCOUNTED.format(**port) if accounting else "AccountingStorageType=accounting_storage/none",
            nodes="\n".join(lines),
        )
        self.conf.write_text(text)
        (self.root / "etc" / "gres.conf").write_text("\n".join(map(self._gpus, self.nodes)) + "\n")
        for name, content in (("slurmdbd.conf", SLURMDBD), ("my.cnf", MYSQL)):
            (self.root / "etc" / name).write_text(content.format(**port))
            (self.root / "etc" / name).chmod(0o600)
        key = self.root / "etc" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _gpus(self, node: str) -> str:
        """GPUs want character devices whose names end in their index: links to /dev/null do."""
        folder = self.root / "dev" / node
        folder.mkdir(parents=True)
        for index in range(2):
            (folder / f"gpu{index}").symlink_to("/dev/null")
        return f"NodeName={node} Name=gpu File={folder}/gpu[0-1]"

    def _start(self, accounting: bool) -> None:
        socket_path = self.root / "munge" / "socket"
        files = {
            "key-file": "etc/munge.key",
            "pid-file": "pid/munged.pid",
            "log-file": "log/munged.log",
            "seed-file": "munge/seed",
        }
        self.run("munged", f"--socket={socket_path}", *(f"--{name}={self.root / path}" for name, path in files.items()))
        self._until("munged", lambda: self.ok("munge", "-n", "-S", str(socket_path)))
        if accounting:
            self._start_accounting()
        self.run("slurmctld")
        self._until("slurmctld", lambda: self.ok("scontrol", "ping"))
        for node in self.nodes:
            self.start(node)
        self._until("the nodes", lambda: self.idle() == set(self.nodes))

    def _start_accounting(self) -> None:
        config, client = f"--defaults-file={self.root}/etc/my.cnf", ["--no-defaults", "-S", f"{self.root}/mysql.sock"]
        who = [f"--auth-root-socket-user={self.user}", "--auth-root-authentication-method=socket", f"--user={self.user}"]
        self.run("mariadb-install-db", config, *who, "--skip-test-db")
        log = (self.root / "log" / "mariadbd.out").open("w")
        subprocess.Popen(["mariadbd", config], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._until("mariadbd", lambda: self.ok("mariadb-admin", *client, "-u", self.user, "ping"))
        self.run("mariadb", *client, "-u", self.user, "-e", "CREATE DATABASE slurm_acct_db")
        self.run("slurmdbd", MYSQL_UNIX_PORT=f"{self.root}/mysql.sock")
        self._until("slurmdbd", lambda: self.ok("sacctmgr", "-n", "show", "cluster"))
        self.run("sacctmgr", "-i", "-Q", "add", "cluster", "lab")

    def start(self, node: str) -> None:
        """Starts a node, for the first time or after a crash."""
        (self.root / "spool" / node).mkdir(exist_ok=True)
        self.run("slurmd", "-N", node)
        if self.ok("scontrol", "update", f"nodename={node}", "state=resume"):
            self._until(node, lambda: node in self.idle())

    def crash(self, node: str) -> None:
        """Kills a node with all that runs on it. Slurm is told at once: by itself it takes half a minute to notice."""
        mine = {pid for pid, environment in self._processes() if f"SLURMD_NODENAME={node}".encode() in environment}
        parents = {_parent(pid) for pid in mine}
        steps = {pid for pid in parents if _command(pid).startswith("slurmstepd")}
        for pid in (int((self.root / "pid" / f"slurmd-{node}.pid").read_text()), *steps, *mine):
            _kill(pid, signal.SIGKILL)
        (self.root / "pid" / f"slurmd-{node}.pid").unlink()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=crashed")

    def controller_seconds(self) -> float:
        """CPU time of slurmctld so far."""
        pid = int((self.root / "pid" / "slurmctld.pid").read_text())
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def calls(self) -> dict[str, int]:
        """How often the controller was asked since it began, by the kind of message."""
        told = self.output("sdiag").partition("message type")[2].partition("by user")[0]
        return {name: int(count) for name, count in re.findall(r"(\w+) +\(\s*\d+\) +count:(\d+)", told)}

    def idle(self) -> set[str]:
        return set(self.output("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split())

    def state(self, job: str) -> str:
        return self.output("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job)

    def wait(self, job: str, *states: str, seconds: float = 40) -> None:
        self._until(f"job {job} in {states}", lambda: self.state(job) in states, seconds)

    def drained(self, seconds: float = 120) -> None:
        """Waits until no job is queued or running."""
        self._until("an empty queue", lambda: not self.output("squeue", "-h"), seconds)

    def reset(self) -> None:
        """Between tests: no jobs, all nodes up."""
        self.ok("scancel", "-u", self.user)
        self.drained(30)

    def run(self, *command: str, **environment: str) -> None:
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def ok(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=60).returncode == 0

    def output(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout.strip()

    def _until(self, what: str, ready: Callable[[], bool], seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in (self.root / "log").glob("*"))
                raise RuntimeError(f"waited {seconds} s for {what}\n{self.output('squeue')}\n{logs}")
            time.sleep(0.1)

    def _processes(self) -> Iterator[tuple[int, list[bytes]]]:
        """The processes of this user that talk to this cluster, with their environments."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"SLURM_CONF={self.conf}".encode() in environment and int(path.name) != os.getpid():
                yield int(path.name), environment

    def down(self) -> None:
        """Stops the daemons and what is left of jobs, and removes the folder."""
        take_down(self.base)


def take_down(base: Path) -> None:
    """Stops the cluster that lives in ``base``, whoever started it."""
    conf = f"SLURM_CONF={base / 'c' / 'etc' / 'slurm.conf'}".encode()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = conf in (path / "environ").read_bytes().split(b"\0") and int(path.name) != os.getpid()
            except OSError:
                continue
            if ours and _command(int(path.name)).startswith(("slurm", "munged", "mariadbd")):
                _kill(int(path.name), signum)
        time.sleep(1)
    shutil.rmtree(base, ignore_errors=True)


def remove_abandoned() -> None:
    """Takes down what test runs left that were killed."""
    for base in Path("/tmp").glob(f"{PREFIX}*"):
        owner = base / "owner"
        if base.stat().st_uid == os.getuid() and owner.exists() and not Path(f"/proc/{owner.read_text()}").exists():
            take_down(base)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


if __name__ == "__main__":
    if sys.argv[1:] == ["install"]:
        install()
    elif sys.argv[1:] == ["up"]:
        lab = Lab()
        (lab.base / "owner").unlink()  # it outlives this process
        print(f"export SLURM_CONF={lab.conf}   # python {sys.argv[0]} down {lab.base}")
    elif sys.argv[1:2] == ["down"]:
        take_down(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
