"""Writes lexical.json: what Python packages make of some texts, for the tests of idiolect-uniqueness.

    pip install rouge-score==0.1.2 nltk==3.10.4 datasketch==2.0.0 simhash==2.1.2 vendi-score==0.0.3
    python make.py

The words are those of idiolect-uniqueness: runs of letters and digits in lower case. Texts are ours.
"""

import json
import math
import pathlib
import platform
import re
import warnings
import zlib
from collections import Counter
from importlib.metadata import version

import numpy as np
import scipy.sparse

# vendi-score 0.0.3 names a module that scipy has since renamed.
if not hasattr(scipy.sparse, "csr"):
    scipy.sparse.csr = scipy.sparse._csr

from datasketch import MinHash
from nltk.metrics.distance import jaccard_distance
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.util import ngrams
from rouge_score import rouge_scorer
from simhash import Simhash
from vendi_score import vendi

warnings.filterwarnings("ignore")
M64 = (1 << 64) - 1
M61 = (1 << 61) - 1

REPLIES = [
    "Photosynthesis is the process by which green plants use sunlight to make sugar out of water and carbon dioxide.",
    "Photosynthesis is the process by which plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "Green plants catch light. With it they split water, bind carbon dioxide, and store what they gain as sugar.",
    "In short: light in, sugar out! The leaf's chlorophyll absorbs red and blue light; it reflects the green.",
    "Think of a leaf as a tiny kitchen: the sun is the stove, water and air are the ingredients, and sugar is the dish.",
    "I am sorry, but I cannot answer that question.",
    "I am sorry, but I cannot answer that question.",
    "Sugar sugar sugar sugar water water sugar sugar sugar.",
    "Yes",
    "yes!",
    "",
    "... --- ...",
    "Les plantes vertes fabriquent du sucre grâce à la lumière : c'est la photosynthèse, déjà connue au XVIIIe siècle.",
    "Растения превращают свет, воду и углекислый газ в сахар и кислород.",
    "1. Light is absorbed\n2. Water is split (2 H2O)\n3. CO2 is fixed in the Calvin cycle\n4. Sugar (C6H12O6) is stored",
]

WORDS = (
    "light leaf water sugar carbon oxygen plant cell energy green sun root stem air gas store make use turn bind "
    "split catch give take slow fast small large old new because while after before often never many few one two"
).split()


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & M64
        return mix(self.state)


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & M64
    return mix(h)


def generated(seed, n):
    """A text of n words, some far more frequent than others."""
    random = SplitMix64(seed)
    picked = []
    for _ in range(n):
        u = random.next() / 2**64
        picked.append(WORDS[int(len(WORDS) * u * u)])
    return " ".join(picked) + "."


def words(text):
    return re.findall(r"[^\W_]+", text.lower())


class Tokenizer:
    def tokenize(self, text):
        return words(text)


def grams(tokens, n):
    """All n-grams; of fewer tokens than n, all of them as one."""
    tokens = list(tokens)
    return list(ngrams(tokens, min(n, len(tokens)))) if tokens else []


def jaccard(a, b, n):
    a, b = set(grams(a, n)), set(grams(b, n))
    return 1 - jaccard_distance(a, b) if a | b else 1.0


def minhash(text, seed, k, n):
    random = SplitMix64(seed)
    pairs = [((random.next() >> 33) | 1, (random.next() >> 3) % M61) for _ in range(k)]
    permutations = np.array(pairs, dtype=np.uint64).T
    m = MinHash(
        num_perm=k,
        hashfunc=lambda data: fnv(data) >> 32,
        permutations=permutations,
        scheme=SCHEME,
    )
    for gram in grams(words(text), n):
        m.update(" ".join(gram).encode())
    return [int(value) for value in m.hashvalues]


def simhash(text, n):
    counts = Counter(" ".join(gram) for gram in grams(words(text), n))
    return Simhash(dict(counts), f=64, hashfunc=fnv).value if counts else 0


def deflated(data):
    return len(zlib.compress(data.encode(), 9))


def ncd(x, y):
    cx, cy = deflated(x), deflated(y)
    return (deflated(x + y) - min(cx, cy)) / max(cx, cy)


def bleus(texts):
    tokens = [words(text) for text in texts]
    smooth = SmoothingFunction().method1
    out = []
    for i, hypothesis in enumerate(tokens):
        references = tokens[:i] + tokens[i + 1 :]
        score = sentence_bleu(references, hypothesis, smoothing_function=smooth) if hypothesis else 0.0
        out.append(float(score))
    return out


def distinct(texts, n):
    every = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(every)) / len(every) if every else None


def openings(texts, n):
    heads = [tuple(words(text)[:n]) for text in texts]
    count = Counter(head for head in heads if head)
    return sum(1 for head in heads if count[head] > 1) / len(heads)


def shared(texts, prompt, n):
    quoted = set(ngrams(words(prompt), n))
    sets = [set(ngrams(words(text), n)) - quoted for text in texts]
    hits = sum(1 for i, s in enumerate(sets) if any(s & t for j, t in enumerate(sets) if j != i))
    return hits / len(sets)


def seen(text, others, prompt, n):
    quoted = set(ngrams(words(prompt), n))
    own = set(ngrams(words(text), n)) - quoted
    theirs = set().union(*(ngrams(words(other), n) for other in others))
    return len(own & theirs) / len(own) if own else None


def score_kernel(kernel):
    return float(vendi.score_K(np.array(kernel)))


def of_set(texts, prompt):
    n = len(texts)
    kernel = [[jaccard(words(a), words(b), 1) for b in texts] for a in texts]
    joined = " ".join(texts)
    return {
        "texts": texts,
        "prompt": prompt,
        "bleu": bleus(texts),
        "distinct": [distinct(texts, n) for n in (1, 2, 3)],
        "compression_ratio": len(joined.encode()) / deflated(joined),
        "vendi_words": score_kernel(kernel),
        "shared_openings": openings(texts, 5),
        "sharing_8grams": shared(texts, prompt, 8),
        "seen_8grams": [seen(texts[i], texts[:i] + texts[i + 1 :], prompt, 8) for i in range(n)],
    }


def of_pair(a, b):
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Tokenizer())
    rouge = scorer.score(b, a)["rougeL"]
    return {
        "a": a,
        "b": b,
        "jaccard_words": [jaccard(words(a), words(b), n) for n in (1, 2, 3)],
        "jaccard_characters_5": jaccard(a, b, 5),
        "rouge_l": [rouge.precision, rouge.recall, rouge.fmeasure],
        "zlib_lengths": [deflated(a), deflated(b), deflated(a + b)],
        "ncd": ncd(a, b),
    }


def of_text(text):
    return {
        "text": text,
        "minhash_seed_7_k_16_n_2": minhash(text, 7, 16, 2),
        "simhash_n_1": str(simhash(text, 1)),
        "simhash_n_3": str(simhash(text, 3)),
    }


def of_embeddings(n, size, seed):
    """Embeddings in few digits, some near each other; the score by their cosines."""
    random = SplitMix64(seed)
    rows = []
    for i in range(n):
        row = [round(random.next() / 2**63 - 1, 3) for _ in range(size)]
        if i % 3 == 2:
            row = [round(x + 0.1 * y, 3) for x, y in zip(rows[i - 1], row)]
        rows.append(row)
    x = np.array(rows)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return {"embeddings": rows, "vendi": score_kernel(x @ x.T)}


def of_matrix(n, seed):
    random = SplitMix64(seed)
    a = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            a[i, j] = a[j, i] = round(random.next() / 2**63 - 1, 4)
    return {"matrix": a.tolist(), "eigenvalues": np.linalg.eigvalsh(a).tolist()}


SCHEME = "legacy"


def main():
    generated_texts = [generated(seed, 120) for seed in range(6)]
    long_texts = [generated(100, 900), generated(101, 700)]
    pairs = [(a, b) for i, a in enumerate(REPLIES) for b in REPLIES[: i + 1]]
    pairs += [(generated_texts[0], b) for b in generated_texts[:3]] + [tuple(long_texts)]
    packages = ["rouge-score", "nltk", "datasketch", "simhash", "vendi-score", "numpy", "scipy"]
    out = {
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION},
        "texts": [of_text(text) for text in REPLIES + long_texts],
        "pairs": [of_pair(a, b) for a, b in pairs],
        "sets": [
            of_set(REPLIES, "Explain: green plants use sunlight to make sugar out of water and air."),
            of_set(REPLIES[:5], ""),
            of_set(generated_texts, ""),
            of_set(REPLIES[5:7], ""),
            of_set([REPLIES[0], ""], ""),
        ],
        "embeddings": [of_embeddings(1, 4, 1), of_embeddings(12, 8, 2), of_embeddings(30, 24, 3)],
        "matrices": [of_matrix(n, n) for n in (2, 3, 10, 33)],
    }
    assert all(math.isfinite(x) for s in out["sets"] for x in s["bleu"])
    path = pathlib.Path(__file__).with_name("lexical.json")
    path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
