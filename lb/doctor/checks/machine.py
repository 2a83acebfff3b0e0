# SPDX-License-Identifier: Apache-2.0
"""Checks of any machine of ours, whatever it is: rights, kernel, interface, disk, certificates, clock. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from lb.daemon.process.privileges import Capability
from lb.doctor.model.facts import (
    CertificateFile,
    Clock,
    ConntrackUse,
    DaemonSeen,
    Disk,
    Interface,
    Kernel,
    Private,
    Rights,
    Role,
    Row,
    Twin,
)
from lb.doctor.model.findings import Finding, Severity, fault, ok, unknown, warning
from lb.tables.values import ago

KERNEL_MIN = (5, 10)
#: Less than this is nearly full: the state of ten thousand services is a few MiB, written anew beside the old one.
DISK_FAULT, DISK_WARNING = 4 << 20, 64 << 20
#: Clocks that differ by more, seconds. Lines of logs cannot be put together; then certificates are refused.
SKEW_WARNING, SKEW_FAULT = 2.0, 30.0
#: A certificate renews itself after a third of its life; what is older than this part of it has not.
RENEWAL_LATE = 0.6
#: Certificates that nobody renews by himself: the manager's authority. Seconds before the end.
AUTHORITY_ENDS = 90 * 86400.0
#: What was put back into the kernel within the last hour is told, seconds; and so many things of it.
REPAIRED_LATELY = 3600.0
REPAIRS_SHOWN = 5
_DAY = 86400.0


def start(role: Role, config: str) -> str:
    """How the daemon is started."""
    run = "lb-manager run" if role is Role.MANAGER else role.program
    return f"`systemctl start {role.program}`, or as root `{run} --config {config}`"


def check_daemon(
    role: Role,
    config: str,
    daemon: DaemonSeen,
    lost: Sequence[str] = (),
    about: Collection[str] = (),
    *,
    lacking: str = "",
) -> Iterator[Finding]:
    """It runs, and answers. ``lost``: what is gone of what it left in the kernel; ``about``: what needs that.
    ``lacking``: the rights that whoever would start it from here lacks."""
    if daemon.answers:
        yield ok("daemon", f"{role.program} runs" + (f" (pid {daemon.pid})" if daemon.pid else ""))
    elif not daemon.may_ask:
        yield unknown("daemon", f"{role.program} was not asked: {daemon.error}", "run `lb doctor` as root")
    else:
        yield fault(
            "privileges" if lacking else "daemon",
            f"{role.program} does not run here: {daemon.error}"
            + (f"; and of what it left in the kernel is gone: {' and '.join(lost)}" if lost else "")
            + (f"; and it cannot be started from here: this shell lacks {lacking}" if lacking else ""),
            f"start it{' as root, or by its unit' if lacking else ''}: {start(role, config)}; "
            f"`journalctl -u {role.program} -n 20` says why it ended",
            cause="daemon_down",
            about=about if lost else (),
        )
    if daemon.answers:
        rejected = daemon.status.get("rejected")
        if rejected:
            yield fault(
                "configuration",
                f"{role.program} refused its last configuration and serves on with the one before: {rejected}",
                f"correct it; `lb check {config}` lists every mistake; then `systemctl reload {role.program}` (SIGHUP)",
            )
        else:
            yield ok("configuration", "the configuration in force is the last one given")


def check_rights(
    role: Role, config: str, needed: Collection[Capability], daemon: DaemonSeen, rights: Rights
) -> Iterator[Finding]:
    """The daemon has what it needs; where it does not run, whoever starts it from here would have it (who would not is
    told by :func:`check_daemon`)."""
    if daemon.answers and daemon.capabilities is not None:
        lacking = lacking_of(needed, daemon.capabilities)
        if lacking:
            yield fault(
                "privileges",
                f"{role.program} (pid {daemon.pid}) runs without {lacking}",
                f"restart it as root or by its unit, which must allow {lacking} (AmbientCapabilities= and "
                f"CapabilityBoundingSet=): `systemctl restart {role.program}`",
            )
        else:
            yield ok("privileges", f"{role.program} has the rights that it needs")
    elif daemon.may_ask:
        if not lacking_of(needed, rights.capabilities):
            yield ok("privileges", f"this shell has the rights that {role.program} needs")
    else:
        yield unknown(
            "privileges", f"the rights of {role.program} cannot be seen by this user", "run `lb doctor` as root"
        )


def lacking_of(needed: Collection[Capability], mask: int) -> str:
    """In words; empty: nothing is lacking."""
    return " and ".join(str(capability) for capability in sorted(needed) if not mask & 1 << capability)


def check_kernel(kernel: Kernel, *, needs_tun: bool) -> Iterator[Finding]:
    found = re.match(r"(\d+)\.(\d+)", kernel.release)
    if found and (int(found[1]), int(found[2])) >= KERNEL_MIN:
        yield ok("kernel", f"Linux {kernel.release}")
    else:
        least = ".".join(map(str, KERNEL_MIN))
        yield fault("kernel", f"Linux {kernel.release} is too old", f"use a kernel of {least} or later")
    if kernel.nft:
        yield ok("nft", "nft is installed")
    else:
        yield fault("nft", "nft is not installed", "install it: `apt install nftables`")
    if kernel.tun is None:
        yield ok("tun", "/dev/net/tun can be opened")
    elif kernel.tun == "permission denied":
        yield unknown("tun", "/dev/net/tun may not be opened by this user", "run `lb doctor` as root")
    elif needs_tun:
        yield fault("tun", f"/dev/net/tun cannot be opened: {kernel.tun}", "load the module: `modprobe tun`")
    else:
        yield warning(
            "tun", f"/dev/net/tun cannot be opened: {kernel.tun}; tunnel probes need it", "load it: `modprobe tun`"
        )


def check_interface(interface: Interface, mtu: int, table: str, config: str) -> Iterator[Finding]:
    """``mtu``: what the file says of the underlay; ``table``: whose file it is."""
    name = interface.name
    if not interface.exists:
        yield fault(
            "interface",
            f"the interface {name} does not exist here",
            f"correct interface in [{table}] of {config}; `ip link` lists what there is",
        )
        return
    if not interface.up:
        yield fault("interface", f"the interface {name} is down", f"`ip link set dev {name} up`")
    elif not interface.carrier:
        yield fault(
            "interface",
            f"the interface {name} has no carrier",
            f"plug it in, or look at the other end: `ip link show {name}`",
        )
    else:
        yield ok("interface", f"{name} is up")
    if interface.mtu < mtu:
        yield fault(
            "mtu",
            f"{name} has an MTU of {interface.mtu}, and mtu in [{table}] says {mtu}: full-size packets are lost",
            f"`ip link set dev {name} mtu {mtu}`, or mtu = {interface.mtu} in [{table}] of every MUX and host",
        )
    else:
        yield ok("mtu", f"the MTU of {name}, {interface.mtu}, has room for mtu = {mtu}")
    if interface.lro:
        yield warning(
            "offloads",
            f"{name} glues received packets together (large-receive-offload), which no forwarder can take apart "
            "exactly",
            f"`ethtool -K {name} lro off`",
        )
    elif interface.lro is None:
        yield unknown("offloads", f"the offloads of {name} cannot be read")
    else:
        yield ok("offloads", f"large-receive-offload of {name} is off")


def check_own_address(addresses: Collection[object], address: object, table: str, config: str) -> Iterator[Finding]:
    if address in addresses:
        yield ok("address", f"{address} is an address of this machine")
    else:
        yield fault(
            "address",
            f"address {address} of [{table}] is not an address of this machine",
            f"`ip addr add {address}/PREFIX dev INTERFACE`, or correct it in {config}",
        )


def check_disk(disk: Disk) -> Iterator[Finding]:
    find = f"`df -h {disk.path}` and `du -xh {disk.path} | sort -h | tail` show what fills it; delete or enlarge"
    if disk.error is not None:
        yield fault("disk", f"{disk.path}: {disk.error}", f"make it usable: `ls -ld {disk.path}`, `df {disk.path}`")
    elif disk.read_only:
        yield fault(
            "disk", f"{disk.path} is mounted read-only: nothing new is kept for the next start",
            f"`findmnt -T {disk.path}`, then `mount -o remount,rw MOUNTPOINT`; `dmesg` says why if the disk failed",
        )  # fmt: skip
    elif disk.inodes and not disk.inodes_free:
        yield fault("disk", f"the filesystem of {disk.path} has no inode left: no file can be made", find)
    elif disk.free < DISK_FAULT and disk.free < disk.total // 2:
        yield fault(
            "disk",
            f"the filesystem of {disk.path} is full ({_bytes(disk.free)} of {_bytes(disk.total)} left): "
            "the last good state cannot be kept, and a restart would go back to an older one",
            find,
        )
    elif disk.free < DISK_WARNING and disk.free < disk.total // 10:
        yield warning("disk", f"the filesystem of {disk.path} has only {_bytes(disk.free)} left", find)
    else:
        yield ok("disk", f"{disk.path} has {_bytes(disk.free)} left")


def _bytes(number: int) -> str:
    if number < 1 << 20:
        return f"{number >> 10} KiB"
    return f"{number >> 20:,} MiB" if number < 1 << 34 else f"{number >> 30:,} GiB"


#: What a certificate that ended explains.
_NOT_FOLLOWED = ("manager",)


def check_certificate(
    role: Role, name: str, config: str, certificate: CertificateFile, now: float
) -> Iterator[Finding]:
    """Of a node."""
    expected = f"{role.value}:{name}"
    anew = join_again(role, name, config)
    if certificate.missing:
        yield fault("certificate", f"there is no certificate of the manager in {certificate.file}", anew)
    elif certificate.error is not None:
        may_not = certificate.error == "permission denied"
        if may_not:
            yield unknown("certificate", f"{certificate.file} may not be read by this user", "run `lb doctor` as root")
        else:
            yield fault("certificate", f"{certificate.file}: {certificate.error}", anew)
    elif certificate.owner != expected:
        yield fault(
            "certificate",
            f"{certificate.file} is the certificate of {certificate.owner}, and this node is {expected}",
            f"correct name in {config}, or join as this one: {anew}",
        )
    elif now >= certificate.not_after:
        yield fault(
            "certificate",
            f"the certificate {certificate.file} expired {_ago(now - certificate.not_after)} ago: "
            "the manager refuses this node, which serves on and gets no changes",
            f"join again: {anew}",
            cause="certificate",
            about=_NOT_FOLLOWED,
        )
    elif now < certificate.not_before:
        yield fault(
            "certificate",
            f"the certificate {certificate.file} becomes valid in {_ago(certificate.not_before - now)}: a clock "
            "is wrong",
            "set this machine's clock: `chronyc makestep`, or `systemctl restart systemd-timesyncd`",
        )
    elif now > certificate.not_before + (certificate.not_after - certificate.not_before) * RENEWAL_LATE:
        yield warning(
            "certificate",
            f"the certificate {certificate.file} ends in {_ago(certificate.not_after - now)} and was not renewed",
            f"`journalctl -u {role.program} | grep 'certificate not renewed'` says why; after its end: {anew}",
        )
    else:
        yield ok("certificate", f"the certificate is valid for another {_ago(certificate.not_after - now)}")


def join_again(role: Role, name: str, config: str) -> str:
    return (
        f"on the manager `lb-manager token --config MANAGER.toml --kind {role.value} --name {name}`, then here "
        f"`{role.program} --config {config} --token TOKEN`"
    )


def check_server_certificate(certificate: CertificateFile, now: float) -> Iterator[Finding]:
    """The one that a manager shows to nodes and operators; a running manager makes it anew long before its end."""
    if certificate.missing or certificate.error is not None:
        return  # it is made at the next start, and the authority's check says who may not read here
    if now >= certificate.not_after:
        yield fault(
            "certificate",
            f"the manager's own certificate {certificate.file} ended {_ago(now - certificate.not_after)} ago: no "
            "node and "
            "no operator trusts it",
            "restart lb-manager, which makes a new one: `systemctl restart lb-manager`",
        )
    else:
        yield ok(
            "certificate", f"the manager's own certificate is valid for another {_ago(certificate.not_after - now)}"
        )


def check_authority(certificate: CertificateFile, now: float) -> Iterator[Finding]:
    """The manager's own."""
    directory = PurePath(certificate.file).parent
    if certificate.missing:
        yield fault("authority", f"there is no CA in {directory}", "`lb-manager init --config MANAGER.toml`")
    elif certificate.error is not None:
        if certificate.error == "permission denied":
            yield unknown("authority", f"{certificate.file} may not be read by this user", "run `lb doctor` as root")
        else:
            yield fault("authority", f"{certificate.file}: {certificate.error}", "restore it from its backup")
    elif now + AUTHORITY_ENDS > certificate.not_after:
        left = certificate.not_after - now
        ended = f"ended {_ago(-left)} ago" if left < 0 else f"ends in {_ago(left)}"
        say = fault if left < _DAY else warning
        yield say(
            "authority",
            f"the manager's CA {certificate.file} {ended}; with it ends every certificate",
            f"move {directory} away, `lb-manager init`, and have every node and operator join anew",
        )
    else:
        yield ok("authority", f"the manager's CA is valid for another {_ago(certificate.not_after - now)}")


def _ago(seconds: float) -> str:
    for unit, name in ((_DAY, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def check_clock(clock: Clock) -> Iterator[Finding]:
    """Against the manager's, where there is one."""
    set_it = (
        "have both synchronised: `timedatectl set-ntp true` (or chrony); at once: `chronyc makestep`, or "
        "`systemctl restart systemd-timesyncd`"
    )
    if clock.ahead is not None:
        yield judge_skew("this machine's clock", clock.ahead, set_it)
    elif clock.error is not None:
        yield unknown("clock", f"this clock cannot be compared with that of {clock.manager}: {clock.error}")
    if clock.ahead is None:
        if clock.synchronised:
            yield ok("ntp", "the clock is synchronised")
        else:
            yield warning(
                "ntp", "nobody synchronises this machine's clock", "`timedatectl set-ntp true`, or install chrony"
            )


def judge_skew(whose: str, ahead: float, remedy: str) -> Finding:
    size = abs(ahead)
    way = "ahead of" if ahead > 0 else "behind"
    if size <= SKEW_WARNING:
        return ok("clock", f"{whose} agrees with the manager's")
    text = f"{whose} is {_ago(size)} {way} the manager's"
    if size > SKEW_FAULT:
        return fault("clock", f"{text}: certificates may be refused, and times in logs and events are wrong", remedy)
    return warning("clock", f"{text}: times in logs and events do not fit together", remedy)


def check_manager(role: Role, name: str, config: str, connection: Row | None) -> Iterator[Finding]:
    """The connection to the manager, by the daemon's own word."""
    if connection is None:
        return
    problem, url = connection.get("problem"), connection.get("url")
    if connection.get("refused"):
        yield fault(
            "manager_state",
            f"this node refused what the manager wants of it: {connection['refused']}",
            "remove the cause; it is tried again every 10 s, and at once after SIGHUP",
        )
    if connection.get("connected") and not problem:
        yield ok("manager", f"follows {url}")
        return
    text = str(problem or "not connected yet")
    if "is connected already" in text or "joined anew" in text or "which is that of" in text:
        yield fault(
            "duplicate_name",
            f"another machine goes by this node's name or address: {text}",
            another_name(role.value, name, config),
        )
    elif "take-over" in text:
        yield fault(
            "history",
            f"does not take orders of {url}: {text}",
            "put the right manager.db back; or there `lb-manager take-over --config MANAGER.toml`, and restart "
            "lb-manager",
            cause="backup_restored",
        )
    elif "expired" in text or "no certificate" in text:
        again = join_again(role, name, config)
        yield fault("manager", f"does not follow {url}: {text}", again, about=_NOT_FOLLOWED)
    elif "state not kept" in text or "cannot be written" in text:
        yield fault("manager", f"the last state is not on this machine's disk: {text}", "see the finding on the disk")
    else:
        yield fault(
            "manager",
            f"does not follow {url}, and serves on with its last good state: {text}",
            f"is lb-manager running, and can it be reached? `curl -k {url}/v1/ca` must answer",
            about=_NOT_FOLLOWED,
        )


def another_name(kind: str, name: str, config: str = "its file") -> str:
    """What to do where two machines are one node."""
    return (
        f"on the machine that is not {name}: stop lb-{kind}, set another name (and address) in [{kind}] of {config}, "
        f"delete <state_dir>/identity and <state_dir>/node, and start lb-{kind} once with --token from "
        f"`lb-manager token --kind {kind} --name NEWNAME`"
    )


def check_repairs(role: Role, daemon: DaemonSeen, now: float, about: Collection[str] = ()) -> Iterator[Finding]:
    """What the daemon has put into the kernel, and what other programs did to it. ``now`` is Unix time; ``about``: what
    all of that is for."""
    rows = daemon.status.get("kernel")
    if not isinstance(rows, list):
        return
    ahead = daemon.status.get("filters_ahead") or ()  # not ours to put back, and they have a check of their own
    found = [row for row in rows if isinstance(row, Mapping) and row.get("name") not in ahead]
    wrong = [row for row in found if row.get("failed") or row.get("fight") or row.get("amiss")]
    lately = [row for row in found if row not in wrong and now - (row.get("last") or 0) < REPAIRED_LATELY]
    for row in wrong[:REPAIRS_SHOWN]:
        yield replace(_unrepaired(role, row, now), cause=_undone(row), about=tuple(about))
    for row in lately[:REPAIRS_SHOWN]:
        yield warning(
            "kernel_kept",
            f"{row.get('name')} {row.get('became')}{_by(row)}; {role.program} put it back {_times(row, now)}",
            "nothing has to be done here; find who does it, and have him leave alone what is of vipmux",
        )
    if not wrong and not lately:
        count = sum(row.get("count") or 0 for row in found)
        rest = f", after {count} repairs since its start" if count else ""
        yield ok("kernel_kept", f"what {role.program} put into the kernel is there{rest}")


#: By the kind of a thing that is kept: the checks that see it missing.
_SEEN_BY: Mapping[str, frozenset[str]] = {
    "nftables": frozenset({"isolation", "translation"}),
    "address": frozenset({"vip_missing"}),
    "route": frozenset({"vip_missing"}),
    "filter": frozenset({"decapsulation"}),
    "qdisc": frozenset({"decapsulation"}),
    "interface": frozenset({"decapsulation"}),
    "sysctl": frozenset({"settings", "vip_arp", "rp_filter"}),
}


def but_undone(findings: Iterable[Finding], daemon: DaemonSeen) -> Iterator[Finding]:
    """Without those of what another program undoes again and again, or what cannot be put back: :func:`check_repairs`
    says so, and that is the cause."""
    rows = daemon.status.get("kernel")
    undone = {str(row.get("what")) for row in (rows if isinstance(rows, list) else ()) if _is_undone(row)}
    seen = frozenset[str]().union(*(_SEEN_BY.get(what, frozenset()) for what in undone))
    return (finding for finding in findings if finding.severity is Severity.OK or finding.check not in seen)


def _is_undone(row: object) -> bool:
    return isinstance(row, Mapping) and bool(row.get("fight") or row.get("failed"))


def _undone(row: Row) -> str | None:
    return "repair_fails" if row.get("failed") else "repair_fight" if row.get("fight") else None


def _unrepaired(role: Role, row: Row, now: float) -> Finding:
    name, what = row.get("name"), f"{row.get('name')} {row.get('became')}{_by(row)}"
    if row.get("failed"):
        return fault(
            "kernel_kept",
            f"{what}, and {role.program} cannot put it back: {row['failed']}",
            f"remove the cause; {role.program} tries again by itself",
        )
    if row.get("fight"):
        return fault(
            "kernel_kept",
            f"another program undoes {name} again and again{_by(row)}; {role.program} put it back {_times(row, now)}, "
            "and does so ever more rarely",
            "stop that program, or have it leave alone what is of vipmux: does it run `nft flush ruleset` or `ip route "
            "flush` (nftables.service, firewalld, a configuration management)?",
        )
    return fault("kernel_kept", what, f"{role.program} puts it back within a second; ask again")


def _by(row: Row) -> str:
    return f" by {row['by']}" if row.get("by") else ""


def _times(row: Row, now: float) -> str:
    count, last = row.get("count") or 0, row.get("last")
    often = "once" if count == 1 else f"{count} times"
    return f"{often}, the last time {ago(last, now)} ago" if last else often


#: From here on the table of connections is nearly full.
CONNTRACK_WARNING, CONNTRACK_FAULT = 0.85, 0.97


def check_conntrack(found: ConntrackUse | None, hurt: str, about: Collection[str] = ()) -> Iterator[Finding]:
    """``hurt``: who suffers where it is full."""
    if found is None or not found.maximum:
        return
    part = found.count / found.maximum
    held = f"conntrack holds {found.count:,} of {found.maximum:,} connections"
    remedy = f"`sysctl -w net.netfilter.nf_conntrack_max={found.maximum * 2}`, and keep it in /etc/sysctl.d/"
    if part > CONNTRACK_FAULT or (found.dropped and part > CONNTRACK_WARNING):
        lost = f", and refused {found.dropped:,} packets within {found.seconds:.1f} s" if found.dropped else ""
        yield fault("conntrack", f"{held}{lost}: {hurt}", remedy, cause="conntrack_full", about=about)
    elif part > CONNTRACK_WARNING:
        yield warning("conntrack", f"{held}; once it is full, {hurt}", remedy, cause="conntrack_full", about=about)
    else:
        yield ok("conntrack", held)


def check_private(role: Role, daemon_user: int, state: Sequence[Private], config: Private | None) -> Iterator[Finding]:
    """Who else may read or change what is this daemon's alone. ``config``: its file, where that holds passwords."""
    if config is not None and config.link is None and config.mode & 0o004:
        yield warning(
            "secrets",
            f"{config.path} holds passwords, and everybody on this machine may read it (mode {config.mode:04o})",
            f"`chmod o-rwx {config.path}`",
            cause="config_readable",
        )
    wrong = 0
    for one in state:
        if one.link is not None and one.owner not in (0, daemon_user):
            what, remedy = f"is a symbolic link to {one.link}", f"`rm {one.path}`, and have {role.program} make it anew"
        elif one.link is not None:
            continue  # an administrator's
        elif one.owner not in (0, daemon_user):
            what = f"belongs to user {one.owner}, and {role.program} runs as user {daemon_user}"
            remedy = f"`chown -R {daemon_user} {one.path}`"
        elif one.mode & 0o022:
            what, remedy = f"may be changed by others (mode {one.mode:04o})", f"`chmod go-w {one.path}`"
        elif one.mode & 0o004 and one.path.endswith("node.pem"):
            what, remedy = f"may be read by everybody (mode {one.mode:04o})", f"`chmod 600 {one.path}`"
        else:
            continue
        wrong += 1
        if wrong <= PRIVATE_SHOWN:
            whose = f"{one.path} {what}: whoever that is can become this node, or lead it"
            yield fault("state_dir", whose, remedy, cause="state_dir")
    if state and not wrong:
        yield ok("state_dir", f"{state[0].path} is {role.program}'s alone")


#: Of files that others may change, so many are named.
PRIVATE_SHOWN = 3


def check_twins(role: Role, name: str, twins: Sequence[Twin], *, interface: str | None = None) -> Iterator[Finding]:
    """Two daemons of one name on one machine take each other's nftables table, socket and probes; two MUXes on one
    interface send every packet twice."""
    beside = [twin for twin in twins if interface is not None and twin.name != name and twin.interface == interface]
    if role is Role.MUX and beside and any(twin.name == name for twin in twins):
        yield fault(
            "duplicate_mux",
            f"a second lb-mux runs on {interface}: pid {beside[0].pid} ({beside[0].config}); both forward what comes "
            "there, so backends get every packet twice",
            f"stop one: `kill {beside[0].pid}`; or give it another interface",
            cause="interface_shared",
        )
    same = [twin for twin in twins if twin.name == name]
    if len(same) > 1:
        who = " and ".join(f"pid {twin.pid} ({twin.config})" for twin in same)
        yield fault(
            "duplicate_name",
            f'{len(same)} {role.program} run on this machine as "{name}": {who}',
            f"stop one: `kill {same[-1].pid}`; or give it another name, state_dir, interface and metrics port",
        )
    else:
        yield ok("duplicate_name", f'no other {role.program} on this machine is called "{name}"')
