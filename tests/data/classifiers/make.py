"""Tiny classifiers with random weights, and what transformers makes of some inputs.

    pip install "transformers==4.28.1" torch safetensors
    python make.py

Writes deberta/ and gptj/: config.json, tokenizer.json, model.safetensors and expected.json (token ids and logits).
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, GPTJConfig, GPTJForSequenceClassification

HERE = pathlib.Path(__file__).parent
WORDS = "the a sky leaf light sugar water is was made of out blue green because air scatters why what how who do does not".split()
TEXTS = [
    ("why is the sky blue", "the sky is blue because air scatters blue light"),
    ("what do green leaf do", "a leaf is made of sugar out of light water air " * 12),
    ("who", "not a sky"),
    ("", "light"),
    ("unknown words here", "none of these words is known to it"),
]


def tokenizer(specials, template):
    vocabulary = {word: i for i, word in enumerate(specials + WORDS)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.add_special_tokens(specials)
    if template:
        ids = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        tokens.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ids)
    return tokens


def write(name, model, tokens, encode):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = ".ln_" in key or "LayerNorm" in key
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (1.0 if scale and key.endswith("weight") else 0.0))
    model.eval()
    cases = []
    for prompt, reply in TEXTS:
        ids = encode(tokens, prompt, reply)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].tolist()
        cases.append({"prompt": prompt, "reply": reply, "ids": ids, "logits": logits})
    state = {key: value.contiguous() for key, value in model.state_dict().items() if not key.endswith(("masked_bias", "attn.bias"))}
    save_file(state, folder / "model.safetensors")
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(model.config.to_json_string())
    tokens.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "expected.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")


def main():
    config = DebertaV2Config(
        vocab_size=48, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=64, relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, max_relative_positions=-1,
        type_vocab_size=0, layer_norm_eps=1e-7, num_labels=1, pooler_hidden_size=24, pooler_dropout=0.0,
        pooler_hidden_act="gelu", pad_token_id=0,
    )
    pair = lambda tokens, prompt, reply: tokens.encode(prompt, reply).ids
    write("deberta", DebertaV2ForSequenceClassification(config), tokenizer(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], True), pair)

    config = GPTJConfig(
        vocab_size=48, n_positions=256, n_embd=24, n_layer=2, n_head=3, rotary_dim=4, n_inner=None,
        activation_function="gelu_new", num_labels=1, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )
    specials = ["[PAD]", "<|endoftext|>", "</s>", "[UNK]", "<|prompter|>", "<|assistant|>"]
    chat = lambda tokens, prompt, reply: tokens.encode(f"<|prompter|>{prompt}</s><|assistant|>{reply}</s><|endoftext|>").ids
    write("gptj", GPTJForSequenceClassification(config), tokenizer(specials, False), chat)


main()
