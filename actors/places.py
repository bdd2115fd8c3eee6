"""Which samplers of the pool can take a prompt; those with least to do come first.

A look costs the same however many samplers there are.
"""

from __future__ import annotations

from actors.members import Member


class Places:
    """The samplers that are ready, by how many prompts each has; none has more than `each`."""

    def __init__(self, each: int) -> None:
        self.each = each
        self._by_work: list[dict[int, Member]] = [{} for _ in range(each + 1)]
        self._open: dict[int, Member] = {}

    def __len__(self) -> int:
        """How many samplers are ready."""
        return len(self._open)

    def open(self, member: Member) -> None:
        """It can take prompts from now on."""
        self._open[id(member)] = member
        self._by_work[member.in_flight][id(member)] = member

    def close(self, member: Member) -> None:
        """It takes no more prompts; those that it has are given back one by one."""
        if self._open.pop(id(member), None) is not None:
            del self._by_work[member.in_flight][id(member)]

    def take(self) -> Member | None:
        """The one with least to do has one prompt more; None where all have as many as they may."""
        for members in self._by_work[:-1]:
            if members:
                member = next(iter(members.values()))
                self._move(member, 1)
                return member
        return None

    def give_back(self, member: Member) -> None:
        """It has one prompt less."""
        self._move(member, -1)

    def _move(self, member: Member, change: int) -> None:
        here = self._by_work[member.in_flight].pop(id(member), None)
        member.in_flight += change
        if here is not None:
            self._by_work[member.in_flight][id(member)] = member
