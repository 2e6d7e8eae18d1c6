"""An attacker that asks for each goal by a strategy, in several turns where the strategy has them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loop.engines import Sample
from loop.errors import ConfigError
from loop.interfaces import Context
from loop.overlap import normalise
from loop.prompts import load_prompt
from loop.records import Attack, Message, Seed, new_id
from loop.surface import trimmed
from roles.attacker import JUDGED, FewShotAttacker, Goal, clarity, dealt, deed
from roles.self_play import answer_to
from roles.strategies import Strategy, strategies, user_turns

# That something is asked for, not what
_ASKING = """
ask answer create describe detailed develop explain explanation give guide help instructions make provide
question request steps teach tell tutorial use using way want write
"""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_LEADING = re.compile(r"^[\s\d.)*\-\"“]+")


@dataclass(frozen=True)
class _Job:
    """A goal on its way to an attack; `talk` is what was said so far, empty where no answer could be had."""

    goal: Goal
    plain: Attack
    strategy: Strategy
    texts: list[str]
    talk: list[Message]


@dataclass(frozen=True)
class StrategyAttacker(FewShotAttacker):
    """The goals and forms of FewShotAttacker, asked for by `strategies` (none named: all packaged ones).

    Goals of the domains safety and benign are dealt their strategies by weight, harmful and harmless ones in
    the same proportions, so that the strategy says nothing of the kind; among harmful ones they go where
    `history` has none or only weak attacks. Others are asked for as they are. A strategy of several turns
    hears the learner's answers between them, cut to `answer_words`. One with `rewrite` hears answer and
    critique and words the query anew (PAIR, Chao et al. 2023). Where that fails the query is asked plainly.
    Raises ConfigError for a strategy that cannot be read.
    """

    strategies: tuple[str, ...] = ()
    answer_words: int = 60
    rewrite_tokens: int = 48
    shared: float = 0.5  # of the goal's content words, what a query in new words must have; at least one

    def __post_init__(self) -> None:
        strategies(self.strategies)

    def attack(self, seeds: Sequence[Seed], history: Sequence[Attack], ctx: Context) -> list[Attack]:
        """At most one attack for each seed, in their order.

        Raises ConfigError where all strategies need answers and `ctx` offers none.
        """
        able = self._able(ctx)
        goals = self._goals(seeds, history, ctx)
        plain = self._plain(goals, ctx)
        wrapped = [
            row for row, goal in enumerate(goals) if goal.seed.domain in JUDGED and not goal.seed.options
        ]
        places = dealt([goals[row] for row in wrapped], [one.weight for one in able], "strategy", ctx)
        drawn = {row: able[place] for row, place in zip(wrapped, places, strict=True)}
        jobs = {
            row: _begun(goals[row], plain[row], strategy, _query(plain[row]))
            for row, strategy in _spread(drawn, plain, history).items()
        }
        asked = self._rewritten(self._talked(list(jobs.values()), ctx), seeds, ctx)
        made = dict(zip(jobs, asked, strict=True))
        return [_as_said(made[row], ctx) if row in made else attack for row, attack in enumerate(plain)]

    def _able(self, ctx: Context) -> list[Strategy]:
        """The strategies that can be used with what `ctx` offers."""
        able = [
            strategy
            for strategy in strategies(self.strategies)
            if (ctx.respond or not strategy.answers) and (ctx.criticise or not strategy.rewrite)
        ]
        if not able:
            raise ConfigError(
                f"roles.attacker.args.strategies: {', '.join(self.strategies)} cannot be used without "
                "answers of the learner, and none are to be had here; add one of a single turn, such as plain"
            )
        return able

    def _talked(self, jobs: Sequence[_Job], ctx: Context) -> list[_Job]:
        """The jobs with all their turns and answers; every round asks the learner for all at once."""
        done = list(jobs)
        for number in range(max((job.strategy.answers for job in jobs), default=0)):
            waiting = [row for row, job in enumerate(done) if job.talk and job.strategy.answers > number]
            answers = ctx.respond([done[row].talk for row in waiting]) if ctx.respond and waiting else []
            for row, answer in zip(waiting, answers, strict=True):
                done[row] = _answered(done[row], trimmed(answer or "", self.answer_words), number)
        return done

    def _rewritten(self, jobs: Sequence[_Job], seeds: Sequence[Seed], ctx: Context) -> list[_Job]:
        """The jobs; those with `rewrite` ask in new words that surely mean what the seed intends."""
        heard = [row for row, job in enumerate(jobs) if job.strategy.rewrite and job.talk]
        done = list(jobs)
        chats = self._rewriting_chats([jobs[row] for row in heard], ctx)
        over = {"n": self.candidates, "max_tokens": self.rewrite_tokens, "stop": ("\n",)}
        groups = ctx.generate(chats, **over) if chats else []
        texts = [
            [text for text in _questions(group) if self._on_goal(text, jobs[row])]
            for row, group in zip(heard, groups, strict=True)
        ]
        chances = self._harm_chances(seeds, [text for found in texts for text in found], ctx)
        for row, found in zip(heard, texts, strict=True):
            goal = jobs[row].goal
            sure = [text for text in found if clarity(goal.seed, chances.get(text)) >= self.sure]
            best = max(sure, key=lambda text: _share(text, goal.text), default=None)
            done[row] = (
                _begun(goal, jobs[row].plain, jobs[row].strategy, best)
                if best
                else replace(jobs[row], talk=[])
            )
        return done

    def _rewriting_chats(self, jobs: Sequence[_Job], ctx: Context) -> list[list[Message]]:
        """What the attacker is asked for each of `jobs`: its goal and query, the answer, the critique."""
        if not jobs or ctx.criticise is None:
            return []
        attacks = [replace(job.plain, turns=job.talk[:-1]) for job in jobs]
        answers = [
            answer_to(attack, job.talk[-1]["content"], ctx) for attack, job in zip(attacks, jobs, strict=True)
        ]
        return [
            load_prompt(job.strategy.rewrite or "").render(
                goal=deed(job.goal.text),
                query=_query(job.plain),
                answer=answer.text,
                # What was wrong; the advice behind it is the learner's, and would turn the goal around.
                critique=_SENTENCE_END.split(critique.rationale)[0],
            )
            for job, answer, critique in zip(jobs, answers, ctx.criticise(attacks, answers), strict=True)
        ]

    def _on_goal(self, text: str, job: _Job) -> bool:
        """Whether `text` can be asked, asks for the goal by enough of its words, and is new."""
        new = normalise(text) not in (normalise(job.goal.text), normalise(_query(job.plain)))
        share = _share(text, job.goal.text)
        return new and self._usable(text) and share > 0 and share >= self.shared


def content_words(text: str) -> set[str]:
    """The words of `text` that say what it is about."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = {word for word in normalise(text).split() if len(word) > 1}
    return words - ENGLISH_STOP_WORDS - set(_ASKING.split())


def _share(text: str, goal: str) -> float:
    """The share of the content words of `goal` that `text` has."""
    words = content_words(goal)
    return len(words & content_words(text)) / len(words) if words else 0.0


def _spread(
    drawn: Mapping[int, Strategy], plain: Sequence[Attack], history: Sequence[Attack]
) -> dict[int, Strategy]:
    """`drawn`, the strategies of harmful goals exchanged among them so that more kinds of attack are tried.

    A cell of category and family that `history` lacks goes first, then those that come late in it, for the
    hardest come first. Which strategies are used, and how often, stays as it was.
    """
    found = dict(drawn)
    weakness = {(attack.category, attack.family): place for place, attack in enumerate(history)}
    empty = len(weakness)
    waiting = [row for row in drawn if plain[row].harmful]
    for strategy in [drawn[row] for row in waiting]:
        row = max(waiting, key=lambda row: weakness.get((plain[row].category, strategy.family), empty))
        waiting.remove(row)
        found[row] = strategy
        # Once tried it goes last: one attack in each cell before a second one in any.
        weakness[plain[row].category, strategy.family] = -1
    return found


def _begun(goal: Goal, plain: Attack, strategy: Strategy, query: str) -> _Job:
    """`goal` asked for by the first turn of `strategy`."""
    texts = user_turns(strategy, deed(goal.text), query)
    return _Job(goal, plain, strategy, texts, [Message(role="user", content=texts[0])])


def _answered(job: _Job, answer: str, number: int) -> _Job:
    """`job` with the learner's answer to turn `number`, and the turn after it."""
    if not answer:
        return replace(job, talk=[])
    following = job.texts[number + 1 : number + 2]
    return replace(
        job,
        talk=[
            *job.talk,
            Message(role="assistant", content=answer),
            *(Message(role="user", content=text) for text in following),
        ],
    )


def _as_said(job: _Job, ctx: Context) -> Attack:
    """The attack that `job` came to; where something could not be had, the query asked plainly."""
    if not job.talk:
        return replace(job.plain, strategy=f"{job.plain.strategy}/plain")
    opener = job.strategy.opener
    said = [turn["content"] for turn in job.talk]
    return replace(
        job.plain,
        id=new_id("attack", ctx.iteration, *said, *([opener] if opener else [])),
        family=job.strategy.family,
        strategy=f"{job.plain.strategy}/{job.strategy.name}",
        turns=job.talk,
        opener=opener,
        query=None if said[-1] == _query(job.plain) else _query(job.plain),
    )


def _query(attack: Attack) -> str:
    return attack.turns[-1]["content"]


def _questions(samples: Sequence[Sample]) -> list[str]:
    """The question with which each sample begins, its first letter a capital; none where it asks nothing."""
    said = [_LEADING.sub("", sample.text or "").partition("?") for sample in samples]
    return [f"{text[0].upper()}{text[1:]}?" for text, mark, _ in said if text and mark]
