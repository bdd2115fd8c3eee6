"""Which samplers of the pool can take a prompt; those with the fewest responses to give come first.

A look costs the same however many samplers there are.
"""

from __future__ import annotations

from actors.members import Member


class Places:
    """The samplers that are ready, by how many responses each is asked for; none for more than `each`."""

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
        self._with(member.in_flight)[id(member)] = member

    def close(self, member: Member) -> None:
        """It takes no more prompts; those that it has are given back one by one."""
        if self._open.pop(id(member), None) is not None:
            del self._with(member.in_flight)[id(member)]

    def take(self, responses: int) -> Member | None:
        """The one with least to do is asked for so many more; None where that is too much for all."""
        for members in self._by_work[: max(0, self.each - responses) + 1]:
            if members:
                member = next(iter(members.values()))
                self._move(member, responses)
                return member
        return None

    def give_back(self, member: Member, responses: int) -> None:
        """It has so many less to give."""
        self._move(member, -responses)

    def _move(self, member: Member, change: int) -> None:
        here = self._with(member.in_flight).pop(id(member), None)
        member.in_flight += change
        if here is not None:
            self._with(member.in_flight)[id(member)] = member

    def _with(self, responses: int) -> dict[int, Member]:
        """Those that are asked for so many; a prompt of more than `each` fills one that had none."""
        return self._by_work[min(responses, self.each)]
