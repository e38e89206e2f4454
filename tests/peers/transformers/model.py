"""Writes a Llama-shaped model with random weights and a byte-level vocabulary, as a folder that both sides load.

    model.py DIR [--width 2048] [--layers 16] [--heads 32] [--key-heads 8] [--feed-forward 8192] [--vocabulary 32000]
             [--dtype bfloat16]

Needs torch, transformers, tokenizers. Speed does not depend on the values; the default is the shape of Llama 3.2 1B with a
smaller vocabulary: merges learnt from a short text, and made-up words beyond those.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = Path(__file__).parents[3] / "crates/idiolect-backend-candle/tests/data/prose.txt"
CONTROL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(size):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # Merges enough that words have about as many tokens as with a real vocabulary.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=min(size, 4000), special_tokens=CONTROL, initial_alphabet=alphabet)
    made.train([str(TEXT)], trainer)
    made.add_tokens([f"made{i}" for i in range(size - made.get_vocab_size())])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=CONTROL[1], chat_template=TEMPLATE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=args.width,
        intermediate_size=args.feed_forward,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.key_heads,
        vocab_size=args.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(getattr(torch, args.dtype)).save_pretrained(args.dir)
    tokenizer(args.vocabulary).save_pretrained(args.dir)


if __name__ == "__main__":
    main()
