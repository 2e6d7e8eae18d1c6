"""What several tests share: a tiny random model shaped like the embedded one, an adapter for it, a script."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.engines import Prompt
from loop.engines.scripted import ScriptedEngine

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "You are a helpful assistant. The user asks and the assistant answers.",
    "How can I bake a loaf of bread? Mix flour, water, yeast and salt, let it rise, then bake it.",
    "Which number comes after seven? Eight comes after seven, and nine after eight.",
    "I can't help with that. Sure, here is a short list: 1. apples 2. pears 3. plums",
    "system\nuser\nassistant\n",
]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama (width 64, context 512), a byte-level tokenizer, SmolLM2's chat form."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = _tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Wider than the default, so that the next token depends on the text enough for a test to see.
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def make_tiny_adapter(tiny_model_dir: Path) -> Callable[[Path, int], Path]:
    """Saves a random LoRA adapter for the tiny model to a folder: `make_tiny_adapter(folder, seed)`."""

    def make(folder: Path, seed: int) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        # `init_lora_weights=False` draws both factors, so that the adapter changes what the model says.
        config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def scripted_engine() -> Callable[..., ScriptedEngine]:
    """`scripted_engine("text")` answers all alike; `scripted_engine(callable, …)` asks its callables."""

    def build(
        answer: str | Callable[[Prompt, int, int], str | None] = "A fine answer.", **more: Any
    ) -> ScriptedEngine:
        if isinstance(answer, str):
            text = answer
            return ScriptedEngine(lambda prompt, sample, seed: text, **more)
        return ScriptedEngine(answer, **more)

    return build
