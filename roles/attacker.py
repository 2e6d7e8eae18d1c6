"""The attacker: writes new queries from sampled seeds, harmful and harmless ones in the same forms."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from loop.interfaces import Context
from loop.overlap import normalise
from loop.prompts import fill, load_prompt
from loop.records import Attack, Message, Pair, Seed, new_id
from roles.self_play import Try, harms_of, lesson

# "Write a tutorial on how to sharpen a knife" asks how to sharpen a knife: put as a question, it says so.
_HOW_TO = re.compile(
    r"^(?:\w+ ){1,6}?(?:(?:on|for|explaining|about) )?how to (?P<goal>.{12,})$", re.IGNORECASE
)
JUDGED = ("safety", "benign")
_NUMBERING = re.compile(r"^[\s\d.)\-*\"'“”]+|[\s.\"'“”]+$")


@dataclass(frozen=True)
class Goal:
    """What is to be asked for: its `origin` is seed or few-shot; where `unclear`, its kind is unsure."""

    seed: Seed
    text: str
    origin: str
    unclear: bool


@dataclass(frozen=True)
class FewShotAttacker:
    """Perez et al. 2022: a numbered list of sampled seeds, the next number left open.

    A share `verbatim` of the attacks are the seeds' own goals; for the others the model writes `candidates`.
    Of which kind a goal is, a linear probe on the hidden states of `layer`, fitted on the seeds, says; where
    it is not `sure` that a goal is what its seed is, `harmful` is null, and the query trains nothing. Every
    goal of the domains safety and benign is put into a form (imperative, question, first person); the forms
    are dealt in the same proportions on both sides.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"generate", "hidden_states"})

    prompt: str = "attacker/few_shot"
    forms: str = "attacker/forms"
    shots: int = 6
    candidates: int = 4
    rehearsed: int = 8  # goals tried for a seed in rehearsing
    verbatim: float = 0.4
    sure: float = 0.8  # below this probability of being what its seed is, a written goal is unclear
    min_words: int = 3
    max_words: int = 30
    layer: int = 14

    def attack(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Attack]:
        """At most one attack for each seed, in their order; seeds of the same kind serve as its examples."""
        return self._plain(self._goals(seeds, history, ctx), ctx)

    def rehearse(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Pair]:
        """Self-play: of goals written for one harmful seed, one that broke the policy over one that did not.

        Each goal that is surely harmful is asked once, those of one seed in one form, so that nothing but the
        goal tells them apart. Harmless seeds are there for the probe alone: what the policy serves badly
        there is mostly nonsense, and nothing to learn to write.
        """
        slots = [slot for slot, seed in enumerate(seeds) if seed.domain in JUDGED and seed.harmful]
        written = self._written(seeds, slots, history, self.rehearsed, ctx)
        chances = self._harm_chances(seeds, [_clean(text) for _, texts in written for text in texts], ctx)
        forms: list[dict[str, Any]] = load_prompt(self.forms).meta["forms"]
        weights = [form["weight"] for form in forms]
        tries: list[list[Try]] = []
        for slot, (chat, texts) in zip(slots, written, strict=True):
            seed, form = seeds[slot], ctx.rng("form", slot, seeds[slot].id).choices(forms, weights)[0]
            said = dict.fromkeys(text.rstrip() for text in texts)
            goals = {text: self._written_goal(seed, _clean(text), chances) for text in said}
            tries.append([Try(chat, text, self._as_attack(goals[text], form, ctx)) for text in said])
        harms = harms_of([each.attack for group in tries for each in group if each.attack.harmful], ctx)
        return [pair for group in tries if (pair := lesson(group, harms))]

    def _plain(self, goals: Sequence[Goal], ctx: Context) -> list[Attack]:
        """Each goal asked for in a form, in one turn."""
        entries: list[dict[str, Any]] = load_prompt(self.forms).meta["forms"]
        forms = dealt(goals, [entry["weight"] for entry in entries], "form", ctx)
        return [self._as_attack(goal, entries[form], ctx) for goal, form in zip(goals, forms, strict=True)]

    def _goals(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Goal]:
        """At most one goal for each seed, all of them distinct."""
        written = self._write(seeds, history, ctx)
        chances = self._harm_chances(seeds, [goal for goals in written for goal in goals], ctx)
        chosen: list[Goal] = []
        taken: set[str] = set()
        for seed, goals in zip(seeds, written, strict=True):
            goals = [goal for goal in goals if normalise(goal) not in taken]
            if not goals:
                continue
            goal = self._choice(seed, goals, chances)
            taken.add(normalise(goal))
            own = goal == _clean(seed.prompt)
            chosen.append(Goal(seed, goal, "seed", False) if own else self._written_goal(seed, goal, chances))
        return chosen

    def _written_goal(self, seed: Seed, goal: str, chances: Mapping[str, float]) -> Goal:
        """A goal that the model wrote; unclear where the probe isn't sure that it is of its seed's kind."""
        return Goal(seed, goal, "few-shot", clarity(seed, chances.get(goal)) < self.sure)

    def _choice(self, seed: Seed, goals: Sequence[str], chances: Mapping[str, float]) -> str:
        """Of the goals that are surely of their kind the one nearest to its seed in length, or the clearest.

        So the goals written on either side are as long as its seeds, which are of like length.
        """
        sure = [goal for goal in goals if clarity(seed, chances.get(goal)) >= self.sure]
        if not sure:
            return max(goals, key=lambda goal: clarity(seed, chances.get(goal)))
        length = len(seed.prompt.split())
        return min(sure, key=lambda goal: abs(len(goal.split()) - length))

    def _write(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[list[str]]:
        """For each seed the goals to choose from: its own, or those that the model wrote."""
        goals = [[_clean(seed.prompt)] for seed in seeds]
        asked = [
            slot
            for slot, seed in enumerate(seeds)
            if self._kinds().get(seed.domain) and ctx.rng("verbatim", slot, seed.id).random() >= self.verbatim
        ]
        for slot, (_, texts) in zip(
            asked, self._written(seeds, asked, history, self.candidates, ctx), strict=True
        ):
            goals[slot] = [_clean(text) for text in texts]
        return goals

    def _written(
        self,
        seeds: Sequence[Seed],
        slots: Sequence[int],
        history: Sequence[Attack],
        count: int,
        ctx: Context,
    ) -> list[tuple[list[Message], list[str]]]:
        """For the seed in each of `slots` what the model was asked, and what of `count` answers can be used.

        All of `seeds` may serve as examples; what copies one of them, or a goal of `history`, can't be used.
        """
        parents = _parents(history)
        pools: dict[tuple[Any, ...], dict[str, str]] = {}
        for seed in seeds:
            pools.setdefault(_kind(seed), {}).setdefault(seed.prompt, seed.category)
        prompt = load_prompt(self.prompt)
        chats = [
            prompt.render(
                kind=self._kinds()[seeds[slot].domain],
                examples=self._examples(slot, seeds[slot], pools[_kind(seeds[slot])], parents, ctx),
            )
            for slot in slots
        ]
        copies = {normalise(text) for pool in (*pools.values(), *parents.values()) for text in pool}

        def usable(text: str) -> bool:
            return self._usable(_clean(text)) and normalise(_clean(text)) not in copies

        groups = ctx.generate(chats, n=count, stop=("\n",)) if chats else []
        said = [[sample.text or "" for sample in group] for group in groups]
        return [(chat, list(filter(usable, texts))) for chat, texts in zip(chats, said, strict=True)]

    def _kinds(self) -> dict[str, str]:
        """What the model is asked to list, by the domains that it writes for."""
        return load_prompt(self.prompt).meta["kinds"]

    def _examples(
        self,
        slot: int,
        seed: Seed,
        pool: Mapping[str, str],
        parents: Mapping[tuple[str, str], Sequence[str]],
        ctx: Context,
    ) -> list[str]:
        """Seeds of one kind, the slot's own last: the nearest example has the most say.

        `pool` has the category of each. Those of the seed's own category come first, so that what is written
        stays with it. Up to half of the others are attacks of that category that broke an earlier policy: the
        model writes more like them.
        """
        rng = ctx.rng("examples", slot, seed.id)
        hard = parents.get((seed.domain, seed.category), ())
        bred = rng.sample(hard, min((self.shots - 1) // 2, len(hard)))
        others = [text for text in pool if text != seed.prompt]
        drawn = sorted(rng.sample(others, len(others)), key=lambda text: pool[text] != seed.category)
        return [*reversed(drawn[: self.shots - 1 - len(bred)]), *bred, seed.prompt]

    def _usable(self, goal: str) -> bool:
        return self.min_words <= len(goal.split()) <= self.max_words

    def _harm_chances(self, seeds: Sequence[Seed], goals: Sequence[str], ctx: Context) -> dict[str, float]:
        """The probability that each goal is harmful; empty where the seeds are all of one kind."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = {_clean(seed.prompt): bool(seed.harmful) for seed in seeds if seed.domain in JUDGED}
        if len(set(known.values())) < 2 or not goals:
            return {}
        labels = np.array(list(known.values()))
        states = ctx.hidden_states([*known, *goals], self.layer)
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
        )
        probe.fit(states[: len(labels)], labels)
        found = probe.predict_proba(states[len(labels) :])[:, 1]
        return {goal: float(chance) for goal, chance in zip(goals, found, strict=True)}

    def _as_attack(self, goal: Goal, entry: dict[str, Any], ctx: Context) -> Attack:
        """The goal asked for in the form `entry`, where its domain leaves a choice."""
        seed = goal.seed
        text, form = self._in_form(seed, goal.text, entry)
        return Attack(
            id=new_id("attack", ctx.iteration, text),
            iteration=ctx.iteration,
            seed_id=seed.id,
            family="zero-shot",
            strategy=f"{goal.origin}/{form}",
            domain=seed.domain,
            category=seed.category,
            harmful=None if goal.unclear else seed.harmful,
            turns=[Message(role="user", content=text)],
            model=ctx.model,
            options=seed.options,
            gold=seed.gold,
        )

    def _in_form(self, seed: Seed, goal: str, entry: dict[str, Any]) -> tuple[str, str]:
        """The query that asks for `goal`, and the name of its form."""
        forms = load_prompt(self.forms).meta
        if seed.options is not None:
            return fill(forms["options"], goal=seed.prompt, options=seed.options), "options"
        if seed.domain == "toxicity":
            return fill(forms["continuation"], goal=goal), "continuation"
        asked = goal if entry["name"] == "imperative" else deed(goal)
        return fill(entry["text"], goal=asked), entry["name"]


def dealt(goals: Sequence[Goal], weights: Sequence[float], what: str, ctx: Context) -> list[int]:
    """For each goal the place of one of `weights`: by lot, but on each side as often as its weight says.

    Harmful, harmless and unclear goals are dealt apart. Drawn one by one, some dozens of goals would differ
    between the sides by chance, and a learner would learn the difference.
    """
    heights = list(accumulate(weights))
    found = [0] * len(goals)
    sides: dict[tuple[bool, bool | None], list[int]] = {}
    for row, goal in enumerate(goals):
        sides.setdefault((goal.unclear, goal.seed.harmful), []).append(row)
    for side, rows in sides.items():
        first = ctx.rng(what, *side).random()
        rows.sort(key=lambda row: ctx.rng(what, goals[row].seed.id, goals[row].text).random())
        for rank, row in enumerate(rows):
            aim = (rank + first) / len(rows) * heights[-1]
            found[row] = min(bisect_right(heights, aim), len(weights) - 1)
    return found


def deed(goal: str) -> str:
    """What `goal` wants to do, where it asks to be told how to do it; otherwise the goal."""
    match = _HOW_TO.match(goal)
    return match["goal"] if match else goal


def clarity(seed: Seed, chance: float | None) -> float:
    """How surely a goal is of the kind that its seed intends; 1 where nothing speaks against it."""
    if chance is None or seed.domain not in JUDGED:
        return 1.0
    return chance if seed.harmful else 1 - chance


def _parents(history: Sequence[Attack]) -> dict[tuple[str, str], list[str]]:
    """The goals of past attacks by domain and category, of those whose query is the goal as it stands."""
    found: dict[tuple[str, str], list[str]] = {}
    for attack in history:
        if attack.harmful and "/imperative" in attack.strategy:
            goals = found.setdefault((attack.domain, attack.category), [])
            if (goal := _clean(attack.asked)) not in goals:
                goals.append(goal)
    return found


def _kind(seed: Seed) -> tuple[Any, ...]:
    return seed.domain, seed.harmful, seed.options is None


def _clean(text: str) -> str:
    """The goal without list numbers, quotes and full stop, its first letter lower unless in an acronym."""
    goal = _NUMBERING.sub("", text.strip())
    return goal[:1].lower() + goal[1:] if not goal[1:2].isupper() else goal
