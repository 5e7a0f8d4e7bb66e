"""Two learners that take turns: each learns by itself, then imitates the other. Needs the extra `rl`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dkel_lightning.policies.imitation import Imitation, imitation
from dkel_lightning.policies.learners import LEARNERS
from dkel_lightning.policies.settings import DualPolicySettings
from dkel_lightning.runtime.seeding import seed_process

LOGGED = ("loss", "distance", "peer_better")
"""Of each step of imitation."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of both policies from the same starts.

    Attributes:
        steps: environment steps so far, all policies together.
        returns: of each policy, one an episode.
        logged: means since the evaluation before, of each policy's imitation.
    """

    steps: int
    returns: Sequence[Sequence[float]]
    logged: Mapping[str, float]


class DualPolicy:
    """Dual policy distillation around two learners; around one it is that learner alone.

    Every random draw is a function of seed and stage. `advance` seeds the global generators of the process, from which
    Stable-Baselines3 draws.

    Args:
        settings: of the run.
        seed: of weights, episodes, exploration and batches.

    Raises:
        ConfigError: the environment cannot be made, or does not fit the algorithm.
    """

    def __init__(self, settings: DualPolicySettings, seed: int = 0) -> None:
        self.settings, self.seed, self.stage = settings, seed, 0
        self.learners = [LEARNERS[settings.algorithm](settings, seed, number) for number in range(settings.policies)]
        self._owed = [0.0 for _ in self.learners]

    @property
    def steps(self) -> int:
        """Environment steps so far, all policies together."""
        return sum(learner.steps for learner in self.learners)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.stage >= self.settings.evaluations

    def advance(self) -> Evaluation:
        """Train up to the next evaluation, and evaluate.

        Raises:
            NonFiniteError: a reward or a state that is not finite.
        """
        seed_process(self.seed, "policies", self.stage)
        for learner in self.learners:
            learner.begin(self.stage)
        seen: dict[str, list[float]] = {}
        for _ in range(self.settings.turns):
            for number, learner in enumerate(self.learners):
                learner.turn()
                for name, values in self._imitate(number).items():
                    seen.setdefault(f"{name}_{number}", []).extend(values)
        self.stage += 1
        returns = [learner.evaluate() for learner in self.learners]
        return Evaluation(self.steps, returns, {name: statistics.fmean(values) for name, values in seen.items()})

    def _imitate(self, number: int) -> dict[str, list[float]]:
        """Let a learner imitate its peer on the peer's latest states, as often as it has made steps of its own."""
        own, peer = self.learners[number], self.learners[1 - number] if len(self.learners) > 1 else None
        if peer is None or not len(peer.recent):
            return {}
        self._owed[number] += self.settings.distil_steps * own.gradient_steps
        found: list[Imitation] = []
        while self._owed[number] >= 1:
            self._owed[number] -= 1
            states = own.tensor(peer.recent.sample(own.used.distil_batch))
            step = imitation(own, peer, states, self.settings.alpha, self.settings.weighting)
            own.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            own.optimizer.step()
            found.append(step)
        return {name: [getattr(each, name).item() for each in found] for name in LOGGED if found}

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resume needs, as tensors and primitives."""
        states = [learner.state_dict() for learner in self.learners]
        return {"stage": self.stage, "owed": [*self._owed], "learners": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.stage, self._owed = state["stage"], [*state["owed"]]
        for learner, own in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(own)
