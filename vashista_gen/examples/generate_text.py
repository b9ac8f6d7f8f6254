"""Text from a transformers model whose every layer decodes through a sparse op: SmolLM2-135M-Instruct on the CPU.

python -m vashista_gen.examples.generate_text "Write a haiku about rivers."
"""

import sys
from typing import Any

import torch

from vashista_gen.demo.model import load_model, load_tokenizer, require, weights
from vashista_gen.generated import smollm2_135m
from vashista_gen.integrations import hf

PROMPT = "Name three rivers of Europe."


def write(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """The model's answer, at most `tokens` tokens, greedy."""
    messages = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main(prompt: str = PROMPT, tokens: int = 48, loaded: tuple[Any, Any] | None = None) -> str:
    """Prints and returns the answer; loaded: a (model, tokenizer) to use instead of loading one."""
    if loaded is None:
        require(("torch", "transformers", "gguf", "accelerate"))
        loaded = load_model(weights()), load_tokenizer(weights())
    model, tokenizer = loaded
    hf.attach(model, smollm2_135m)  # the one line; hf.attach(model) finds the package by the model's shape
    try:
        answer = write(model, tokenizer, prompt, tokens)
    finally:
        hf.detach(model)  # back to what transformers does
    print(answer)
    return answer


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or PROMPT)
