"""Which release of a deployment answers a request: by weight, and the same one for the same person."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from inhouse.release.arms import Arm, Deployment
from inhouse.release.rules import WHOLE
from inhouse.serve.target import Target

ADAPTER_MARK = ":"


@dataclass(frozen=True)
class Serving:
    """A deployment at one moment, and the release of each of its arms; replaced whole."""

    deployment: Deployment
    targets: Mapping[int, Target]  # by release id

    @property
    def main(self) -> Target:
        """The release of the live arm with the greatest weight."""
        return self.targets[self.deployment.release.id]

    @property
    def answering(self) -> list[Arm]:
        """The arms that requests go to."""
        return [arm for arm in self.deployment.arms if arm.role != "shadow"]

    def arms_with(self, adapter: str) -> list[Arm]:
        """The arms that requests for this adapter go to."""
        return [arm for arm in self.answering if adapter in self.targets[arm.release.id].adapters]

    def way_to(self, label: str) -> Way | None:
        """The arm of the release with this label, where one of these answers."""
        arm = next((arm for arm in self.answering if arm.release.label == label), None)
        return None if arm is None else Way(self, arm, self.targets[arm.release.id])


@dataclass(frozen=True)
class Way:
    """Where a request goes."""

    serving: Serving
    arm: Arm
    target: Target
    adapter: str | None = None
    failed: Arm | None = None  # the canary that it was dealt to, whose engine is not there

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.serving.deployment.name

    def instead(self) -> Way | None:
        """The live release's, for a request that its canary cannot answer; None where that one cannot either."""
        serving = self.serving
        if self.arm.role != "canary" or not serving.main.pool.ready:
            return None
        arms = serving.answering if self.adapter is None else serving.arms_with(self.adapter)
        live = next((arm for arm in arms if arm.release.id == serving.deployment.release.id), None)
        return None if live is None else Way(serving, live, serving.main, self.adapter)

    def shadows(self) -> list[Target]:
        """Releases that get a copy of this request, each by its own chance; not those without its adapter."""
        lots = [
            arm for arm in self.serving.deployment.arms if arm.role == "shadow" and random.random() * WHOLE < arm.weight
        ]
        targets = [self.serving.targets[arm.release.id] for arm in lots if arm.release.id in self.serving.targets]
        return [target for target in targets if self.adapter is None or self.adapter in target.adapters]


def way_of(serving: Serving, who: str | None, adapter: str | None = None) -> Way:
    """The arm for this request. `who` stays with one arm as long as the weights stay; None is dealt at random.

    Of the arms that have the adapter, of which there must be one. Nobody waits for a canary whose engine is being
    started again: the live release answers, where it has the adapter.
    """
    arms = serving.answering if adapter is None else serving.arms_with(adapter)
    arm = arms[0] if len(arms) == 1 else choose(arms, point_of(serving.deployment.name, who))
    way = Way(serving, arm, serving.targets[arm.release.id], adapter)
    if arm.role == "canary" and not way.target.pool.ready and (live := way.instead()) is not None:
        return replace(live, failed=arm)
    return way


def point_of(deployment: str, who: str | None) -> float:
    """A point in [0, 1): the same for the same person, at random for nobody in particular."""
    if who is None:
        return random.random()
    hashed = hashlib.blake2b(f"{deployment}\0{who}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(hashed, "big") / 2**64


def choose(arms: Sequence[Arm], point: float) -> Arm:
    """The arm at this point of the line that they share.

    The canary lies at the beginning: when it is given more, whoever has it keeps it.
    """
    line = sorted(arms, key=lambda arm: (arm.role != "canary", arm.release.id))
    left = point * sum(arm.weight for arm in line)
    for arm in line:
        if left < arm.weight:
            return arm
        left -= arm.weight
    return line[-1]
