# SPDX-License-Identifier: Apache-2.0
"""Rows of announcements: who shall announce a VIP, who does, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lb.rows.announcement import AnnouncementRow
from manager.api.answers import AnnouncedVips, AnnouncementWords, ToldPeer
from manager.api.reader import NO_BGP, Reader, Row
from manager.nodes.hub import Entry
from manager.observed.announcements import ToldByVip, bare, silent
from manager.plan.model import MUX, VipPlan

#: So many groups of VIPs are told of after a change.
GROUPS = 20

_NOTHING: Row = {}

#: Backends of which nothing is known yet.
_COMING = ("unknown", "installing")


@dataclass(frozen=True, slots=True)
class MuxAnnouncements:
    """What one MUX tells of its announcements."""

    name: str
    away: bool
    silent: bool  #: it speaks no BGP
    by_vip: ToldByVip


class VipRows(Reader):
    """Of each VIP and MUX."""

    def rows(self) -> list[AnnouncementRow]:
        """One row for each VIP and MUX, and for each BGP peer where the MUX tells of them."""
        told = self.of_muxes()
        return [
            row for vip, found in sorted(self._controller.plan.vips.items()) for row in announced_rows(vip, found, told)
        ]

    def of_muxes(self) -> list[MuxAnnouncements]:
        """What MUXes tell of their announcements, by name."""
        return [
            MuxAnnouncements(
                entry.record.name,
                entry.connection is None,
                silent(entry) and "peers" in entry.status,
                self._by_vip(entry),
            )
            for entry in self.entries(MUX)
        ]

    def _by_vip(self, entry: Entry) -> ToldByVip:
        return self._controller.announced.by_vip(entry)

    def of_vips(self, vips: Iterable[str]) -> tuple[list[AnnouncedVips], bool]:
        """Of these VIPs, those of which the same is to be said together; and whether that may soon be another: a MUX is
        about to announce; where none does yet, one should, or backends are new, for which the policy may wait."""
        announced, plan = self._controller.announced, self._controller.plan
        without = {entry.record.name for entry in self.entries(MUX) if silent(entry)}
        groups: dict[tuple[tuple[str, ...], tuple[str, ...], str | None, bool], list[str]] = {}
        later = False
        for vip in sorted(vips):
            found = plan.vips.get(vip)
            if found is None:
                continue
            note, soon = announced.words(vip, found)
            by = announced.by.get(vip, ())
            # A session that is down may be up in a moment, as after a start; and backends may be well.
            coming = found.granted - announced.drained or any(it.shown in _COMING for it in found.backends)
            later = later or soon or bool(not by and coming)
            told = note.text if note is not None else None
            if told is None and (some := [mux for mux in by if mux in without]):
                told = f"{', '.join(some[:4])}: without BGP, what is live counts"
            silent_ = not by and bool(found.granted or found.withheld)
            groups.setdefault((by, tuple(announced.wanted(found)), told, silent_), []).append(bare(vip))
        rows_ = [
            AnnouncedVips(
                count=len(some),
                vips=some[:3],
                announced_by=list(by),
                wanted_by=list(wanted),
                note=told,
                silent=silent_,
            )
            for (by, wanted, told, silent_), some in groups.items()
        ]
        return rows_[:GROUPS], later

    def words(self, entry: Entry, vip: VipPlan | None) -> AnnouncementWords:
        name = entry.record.name
        if vip is None or name not in vip.granted:
            reason = vip.withheld.get(name, "it is new") if vip else "it is not planned yet"
            return AnnouncementWords(mux=name, announces=False, reason=reason, peers=[])
        if silent(entry) and entry.connection is not None and "peers" in entry.status:
            live = vip.vip in (entry.live or {}).get("announcements", {})
            return AnnouncementWords(mux=name, announces=live, reason=f"wanted; {NO_BGP}", peers=[])
        told = self._by_vip(entry).get(vip.vip, [])
        peers = [ToldPeer(name=row.get("peer"), state=row.get("state"), why=row.get("why")) for row in told]
        if self._controller.plan.drains.get(name, "") is None:
            reason = "wanted, but it drains"
        elif entry.connection is None:
            reason = "wanted, and it goes on by itself while it is disconnected"
        elif entry.live_generation < entry.generation:
            reason = f"wanted; it has not acknowledged generation {entry.generation} yet"
        else:
            reason = "wanted"
        announces = any(peer.state in ("announced", "draining") for peer in peers) if peers else None
        return AnnouncementWords(mux=name, announces=announces, reason=reason, peers=peers)


def announced_rows(vip: str, found: VipPlan, told: Iterable[MuxAnnouncements]) -> Iterator[AnnouncementRow]:
    """Of one VIP, as the plan has it, and of each MUX."""
    for mux in told:
        wanted = mux.name in found.granted
        why = None if wanted else found.withheld.get(mux.name)
        rows_ = mux.by_vip.get(vip)
        if wanted and not rows_:
            why = (
                "the MUX is not connected" if mux.away else NO_BGP if mux.silent else "the MUX has not reported it yet"
            )
        for row in rows_ or [_NOTHING]:
            yield AnnouncementRow(
                vip=vip,
                mux=mux.name,
                wanted=wanted,
                peer=row.get("peer"),
                state=row.get("state"),
                reason=why or row.get("why"),
            )
