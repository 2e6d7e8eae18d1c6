"""Judges that ask a model: any LLM with a prompt file, a guard in its own words, or a text classifier."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from loop.assets import digest_of
from loop.config import is_secret
from loop.engines import Prompt, Sampling
from loop.engines.chat import neutralise, special_tokens
from loop.engines.noise import quieten
from loop.errors import ConfigError
from loop.heldout.judges import Tells, score_present
from loop.heldout.judging import JudgeModel
from loop.heldout.readers import Reader, last_yes_or_no, rubric_score, unsafe_first_line, yes_or_no_of
from loop.prompts import load_prompt, prompt_path
from loop.records import stable_hash

CLASSIFIED_TOGETHER = 16  # texts in a pass of a classifier
NO_LIMIT = 100_000  # a tokenizer that was saved without a longest text names an astronomic one


@dataclass(frozen=True)
class PromptJudge:
    """Any LLM, asked with a prompt file whose front matter says how to read it: `verdict: yes_no | rubric`.

    The prompt gets `query` and `answer`; both only ever enter as variables. Raises ConfigError.
    """

    model: JudgeModel
    prompt: str
    tells: Tells = "met"
    max_tokens: int = 96
    name: str = field(init=False)  # with a digest of all that a score depends on

    def __post_init__(self) -> None:
        _ = self._read
        if self._verdict == "rubric" and self.tells != "met":
            raise ConfigError(f"judge {self.model.name}: a rubric's score tells met, not {self.tells}")
        text = prompt_path(self.prompt).read_text(encoding="utf-8")
        digest = _digest(self.model, (text, self.tells, self.max_tokens))
        parts = dict.fromkeys([Path(self.prompt).stem, self.model.name, digest])
        object.__setattr__(self, "name", "-".join(parts))

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        """See Judge."""
        return score_present(self._verdicts, prompts, completions)

    @property
    def _verdict(self) -> str:
        return str(load_prompt(self.prompt).meta.get("verdict"))

    @cached_property
    def _read(self) -> Reader:
        readers = {"yes_no": last_yes_or_no, "rubric": rubric_score}
        return _chosen(readers, self._verdict, f"prompt {self.prompt!r}")

    def _verdicts(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        form = load_prompt(self.prompt)
        chats = [
            form.render(query=query, answer=answer) for query, answer in zip(prompts, answers, strict=True)
        ]
        return _asked(self.model, chats, self.max_tokens, self._read)


@dataclass(frozen=True)
class GuardJudge:
    """A guard model, asked in the form of its own tokenizer's chat template; the score is 0 or 1.

    `verdict` is unsafe_first (Llama Guard), harmful_response (WildGuard) or yes_no (ShieldGemma).
    `template_args` go to the template, `template` is a Jinja file where the tokenizer brings none, and
    `markers` are texts that the template marks its parts with and that are no special tokens: they are broken
    in contents as special tokens are. Raises ConfigError.
    """

    model: JudgeModel
    verdict: str
    tells: Tells = "met"
    template: str = ""
    template_args: dict[str, Any] = field(default_factory=dict[str, Any])
    markers: Sequence[str] = ()
    max_tokens: int = 32
    name: str = field(init=False)

    def __post_init__(self) -> None:
        _ = self._read
        if self.verdict == "unsafe_first" and self.tells == "refusal":
            raise ConfigError(f"judge {self.model.name}: safe or unsafe does not tell a refusal")
        if self._form is None:
            raise ConfigError(
                f"judge {self.model.name}: the tokenizer in {self.model.path} has no chat template; give "
                "args.template, a Jinja file with the form that the model was trained with"
            )
        settings = (self.verdict, self.tells, self._form, self.template_args, self.markers, self.max_tokens)
        object.__setattr__(self, "name", f"{self.model.name}-{_digest(self.model, settings)}")

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        """See Judge."""
        return score_present(self._verdicts, prompts, completions)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model.path)

    @cached_property
    def _form(self) -> Any:
        if not self.template:
            return self._tokenizer.chat_template
        if not (path := Path(self.template)).is_file():
            raise ConfigError(f"judge {self.model.name}: args.template: no such file {self.template!r}")
        return path.read_text(encoding="utf-8")

    @cached_property
    def _read(self) -> Reader:
        line = "response refusal" if self.tells == "refusal" else "harmful response"
        readers: dict[str, Reader] = {
            "unsafe_first": unsafe_first_line,
            "harmful_response": lambda answer: yes_or_no_of(line, answer),
            "yes_no": last_yes_or_no,
        }
        return _chosen(readers, self.verdict, f"judge {self.model.name}")

    def _verdicts(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        texts = [self._rendered(*pair) for pair in zip(prompts, answers, strict=True)]
        return _asked(self.model, texts, self.max_tokens, self._read)

    def _rendered(self, query: str, answer: str) -> str:
        """The raw text of the guard's prompt, less the first token, which an engine puts before raw text."""
        controls = (*special_tokens(self._tokenizer), *self.markers)
        turns = [
            {"role": role, "content": neutralise(content, controls)}
            for role, content in (("user", query), ("assistant", answer))
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._form if self.template else None,
                tokenize=False,
                add_generation_prompt=True,
                **self.template_args,
            )
        except TemplateError as error:
            raise ConfigError(f"judge {self.model.name}: its chat template says: {error}") from None
        begins = self._tokenizer.bos_token
        put_first = begins and self._tokenizer("")["input_ids"][:1] == [self._tokenizer.bos_token_id]
        return text.removeprefix(begins) if put_first else text


@dataclass(frozen=True)
class ClassifierJudge:
    """P(label) of a Hugging Face sequence classifier for the answer alone; a long answer is cut.

    Softmax over labels that exclude each other, a sigmoid for labels that do not or where there is one:
    what the model's config says, unless `multi_label` says it. Raises ConfigError.
    """

    model: JudgeModel
    label: str
    tells: Tells = "toxicity"
    multi_label: bool | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if not any("SequenceClassification" in kind for kind in self._config.architectures or ()):
            # Loaded as one, any other model would get a head of random weights and score all the same.
            raise ConfigError(f"judge {self.model.name}: {self.model.path} holds no sequence classifier")
        if self.label not in (labels := list(self._config.id2label.values())):
            raise ConfigError(
                f"judge {self.model.name}: no label {self.label!r}; there are {', '.join(labels)}"
            )
        settings = (self.label, self.tells, self.multi_label)
        object.__setattr__(self, "name", f"{self.model.name}-{_digest(self.model, settings)}")

    def score(self, prompts: Sequence[str], completions: Sequence[str | None]) -> list[float | None]:
        """See Judge."""
        return score_present(self._probabilities, prompts, completions)

    @cached_property
    def _config(self) -> Any:
        return AutoConfig.from_pretrained(self.model.path)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        quieten()
        tokenizer: Any = AutoTokenizer.from_pretrained(self.model.path)
        classifier: Any = AutoModelForSequenceClassification.from_pretrained(
            self.model.path, use_safetensors=True
        )
        return tokenizer, classifier.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _probabilities(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        tokenizer, classifier = self._loaded
        longest, controls = tokenizer.model_max_length, special_tokens(tokenizer)
        if longest > NO_LIMIT:
            # RoBERTa and its kin count positions from 2 on, so that two of them are none.
            longest = self._config.max_position_embeddings - 2
        found: list[float] = []
        for start in range(0, len(answers), CLASSIFIED_TOGETHER):
            texts = [neutralise(text, controls) for text in answers[start : start + CLASSIFIED_TOGETHER]]
            fed = tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
            with torch.inference_mode():
                logits = classifier(**fed.to(classifier.device)).logits.float()
            found += self._activated(logits)[:, self._place].tolist()
        return found

    @cached_property
    def _place(self) -> int:
        return next(int(place) for place, label in self._config.id2label.items() if label == self.label)

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        apart = self._config.problem_type == "multi_label_classification"
        apart = apart if self.multi_label is None else self.multi_label
        return torch.sigmoid(logits) if apart or logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def _chosen(readers: dict[str, Reader], verdict: str, where: str) -> Reader:
    if verdict not in readers:
        raise ConfigError(f"{where}: verdict {verdict!r} is none of {', '.join(readers)}")
    return readers[verdict]


def _asked(model: JudgeModel, prompts: Sequence[Prompt], max_tokens: int, read: Reader) -> list[float | None]:
    """Greedy answers, read; None where the model gave none."""
    samples = model.engine.generate(prompts, Sampling(max_tokens, temperature=0.0))
    return [None if first.text is None else read(first.text) for first, *_ in samples]


def _digest(model: JudgeModel, settings: object) -> str:
    """Eight digits that change with the weights' content, the engine's settings and the judge's own."""
    engine = model.config.engine
    args = {key: value for key, value in engine.args.items() if not is_secret(key)}
    content = (digest_of(model.config.weights), engine.target, args, settings)
    return f"{stable_hash(model.name, content):016x}"[:8]
